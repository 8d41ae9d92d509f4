// Token gates: values, and gradients against finite differences.
#include "kernels/token_gate.h"

#include "tests/kernels/kernel_test.h"

namespace fulmen {
namespace {

using testing::Host;
using testing::Random;
using testing::Values;

constexpr std::int64_t tokens = 37, width = 12, groups = 4;

constexpr GateForm forms[] = {GateForm::sigmoid, GateForm::softplus, GateForm::log_sigmoid, GateForm::negative_softplus,
                              GateForm::negative_exponent};

struct Problem {
  GateForm form;
  bool has_bias;
  Values x, bias, log_rate;

  double value(std::int64_t i) const {
    const std::int64_t j = i % width;
    const double u = x[i] + (has_bias ? bias[j] : 0.0);
    const auto softplus = [](double v) { return v > 30 ? v + std::exp(-v) : std::log1p(std::exp(v)); };
    switch (form) {
      case GateForm::sigmoid: return 1.0 / (1.0 + std::exp(-u));
      case GateForm::softplus: return softplus(u);
      case GateForm::log_sigmoid: return -softplus(-u) / 3.0;
      case GateForm::negative_softplus: return -std::exp(log_rate[j / (width / groups)]) * softplus(u);
      case GateForm::negative_exponent: return -std::exp(u);
    }
    return 0;
  }
  Values values() const {
    Values result;
    for (std::int64_t i = 0; i < tokens * width; ++i) result.push_back(value(i));
    return result;
  }
};

Problem random_gate(GateForm form, bool has_bias, DType dtype, Random& random) {
  const DType wide = accumulation_dtype(dtype);
  return {form, has_bias, testing::rounded(random.normals(tokens * width, 2.0), dtype),
          testing::rounded(random.normals(width), wide), testing::rounded(random.normals(groups), wide)};
}

TokenGate make_gate(Host& host, const Problem& p, DType dtype) {
  const DType wide = accumulation_dtype(dtype);
  TokenGate gate{.form = p.form, .divisor = 3.0};
  if (p.has_bias) gate.bias = host.tensor(wide, {width}, p.bias);
  if (p.form == GateForm::negative_softplus) gate.log_rate = host.tensor(wide, {groups}, p.log_rate);
  return gate;
}

TEST(TokenGate, ForwardEqualsFormulas) {
  std::uint64_t stream = 8000;
  for (const GateForm form : forms)
    for (const bool has_bias : {false, true})
      for (const DType dtype : testing::test_dtypes()) {
        Random random(++stream);
        Host host;
        const Problem p = random_gate(form, has_bias, dtype, random);
        const Tensor y = host.poisoned(accumulation_dtype(dtype), {tokens, width});
        token_gate_forward(host.execution, make_gate(host, p, dtype), host.strided(dtype, tokens, width, 5, p.x), y);
        testing::expect_close(y, p.values(), dtype == DType::fp64 ? 1e-14 : 1e-6,
                              fmt::format("form {} bias {}", static_cast<int>(form), has_bias));
      }
}

// Far out neither end overflows, and small results keep their digits.
TEST(TokenGate, HoldsAtItsEnds) {
  for (const GateForm form : {GateForm::sigmoid, GateForm::softplus, GateForm::log_sigmoid}) {
    Random random(8100);
    Host host;
    Problem p = random_gate(form, false, DType::fp64, random);
    for (std::size_t i = 0; i < p.x.size(); ++i)
      p.x[i] = (i % 2 == 0 ? 1.0 : -1.0) * (25.0 + 20.0 * static_cast<double>(i % 33));
    const Tensor y = host.poisoned(DType::fp64, {tokens, width});
    token_gate_forward(host.execution, make_gate(host, p, DType::fp64), host.tensor(DType::fp64, {tokens, width}, p.x),
                       y);
    const Values actual = testing::read(y);
    for (std::int64_t i = 0; i < tokens * width; ++i)
      ASSERT_NEAR(actual[i], p.value(i), 1e-13 * std::abs(p.value(i)))
          << "form " << static_cast<int>(form) << " of " << p.x[i];
  }
}

TEST(TokenGate, GradientsEqualFiniteDifferences) {
  std::uint64_t stream = 8200;
  for (const GateForm form : forms)
    for (const bool has_bias : {false, true}) {
      Random random(++stream);
      Host host;
      const Problem p = random_gate(form, has_bias, DType::fp64, random);
      const Values weights = random.normals(tokens * width);
      const TokenGate gate = make_gate(host, p, DType::fp64);
      const Tensor x = host.tensor(DType::fp64, {tokens, width}, p.x), y = host.poisoned(DType::fp64, {tokens, width});
      TokenGateGradients gradients{.d_x = host.poisoned(DType::fp64, {tokens, width}), .d_bias = {}, .d_log_rate = {}};
      // Both are added to.
      if (gate.bias) gradients.d_bias = host.tensor(DType::fp64, {width}, Values(width, 1.0));
      if (gate.log_rate) gradients.d_log_rate = host.tensor(DType::fp64, {groups}, Values(groups, 1.0));
      token_gate_backward(host.execution, gate, host.tensor(DType::fp64, {tokens, width}, weights), x, gradients);
      const auto objective = [&] {
        token_gate_forward(host.execution, gate, x, y);
        return testing::weighted_sum(weights, testing::read(y));
      };
      const auto check = [&](const Tensor& of, const Tensor& gradient, double added, const char* what) {
        if (of.is_null()) return;
        Values expected = testing::finite_differences(of, 1e-3, objective);
        for (double& value : expected) value += added;
        testing::expect_close(gradient, expected, 1e-8, fmt::format("{} of form {}", what, static_cast<int>(form)));
      };
      check(x, gradients.d_x, 0.0, "x");
      check(gate.bias, gradients.d_bias, 1.0, "bias");
      check(gate.log_rate, gradients.d_log_rate, 1.0, "log_rate");
    }
}

}  // namespace
}  // namespace fulmen
