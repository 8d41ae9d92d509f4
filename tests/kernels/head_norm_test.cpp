// The norm of each head: against the oracle in all its forms, against finite differences, strided and in place.
#include "kernels/head_norm.h"

#include "kernels/reference/layers.h"
#include "tests/kernels/kernel_test.h"
#include "tests/kernels/wide_cases.h"

namespace fulmen {
namespace {

using testing::Host;
using testing::Random;
using testing::Sliced;
using testing::Values;

constexpr double epsilon = 1e-6;
constexpr Activation gates[] = {Activation::none, Activation::silu, Activation::sigmoid};
enum class GainKind : std::uint8_t { none, shared, whole };

// One of the forms that a head norm has.
struct Form {
  GainKind gain;
  bool zero_centred, gated;
  Activation activation;
  GatePlace place;
};

std::vector<Form> all_forms() {
  std::vector<Form> forms;
  for (const GainKind gain : {GainKind::none, GainKind::shared, GainKind::whole})
    for (const bool zero_centred : {false, true}) {
      forms.push_back({gain, zero_centred, false, Activation::silu, GatePlace::after_norm});
      for (const Activation activation : gates)
        for (const GatePlace place : {GatePlace::after_norm, GatePlace::before_norm})
          forms.push_back({gain, zero_centred, true, activation, place});
    }
  return forms;
}

std::int64_t gain_elements(const Form& form, std::int64_t groups, std::int64_t group_width) {
  return form.gain == GainKind::none ? 0 : form.gain == GainKind::shared ? group_width : groups * group_width;
}

reference::HeadNormProblem problem_of(const Form& form, std::int64_t group_width, Values x, Values gate, Values gain,
                                      std::int64_t width) {
  return {width,           group_width,       std::move(x),    form.gated ? std::move(gate) : Values(),
          std::move(gain), form.zero_centred, form.activation, form.place,
          epsilon};
}

void check(DType dtype, std::int64_t rows, std::int64_t groups, std::int64_t group_width, std::int64_t offset,
           const Form& form, Random& random) {
  SCOPED_TRACE(fmt::format("{} [{}, {} x {}] at {}, gain {}, centred {}, gate {} {} {}", name_of(dtype), rows, groups,
                           group_width, offset, static_cast<int>(form.gain), form.zero_centred, form.gated,
                           static_cast<int>(form.activation), static_cast<int>(form.place)));
  Host host;
  const std::int64_t width = groups * group_width, gains = gain_elements(form, groups, group_width);
  const DType sums_dtype = accumulation_dtype(dtype);
  const auto values = [&](std::int64_t count) { return testing::rounded(random.normals(count), dtype); };
  const Values x = values(rows * width), gate = values(rows * width), d_y = values(rows * width), gain = values(gains);
  const auto expected = reference::head_norm(problem_of(form, group_width, x, gate, gain, width), d_y);
  const Sliced xs(host, dtype, width, offset, x), gate_values(host, dtype, width, offset, gate);
  const Sliced d_ys(host, dtype, width, offset, d_y), y(host, dtype, rows, width, offset);
  const Sliced again(host, dtype, rows, width, offset), d_x(host, dtype, rows, width, offset);
  const Sliced d_gate(host, dtype, rows, width, offset);
  const Tensor weights = gains > 0 ? host.tensor(dtype, {gains}, gain) : Tensor();
  const auto gain_sums = [&] { return gains > 0 ? host.tensor(sums_dtype, {gains}, Values(gains, 1.0)) : Tensor(); };
  const HeadNorm norm{group_width,     epsilon,   weights, form.zero_centred, form.gated ? gate_values.part : Tensor(),
                      form.activation, form.place};
  const Tensor inverse_rms = host.poisoned(sums_dtype, {rows, groups});
  head_norm_forward(host.execution, norm, xs, y, inverse_rms);
  testing::expect_close(y, expected.y, testing::tolerance_of(dtype), "y");
  const Tensor d_gain = gain_sums();
  head_norm_backward(host.execution, norm, d_ys, xs, inverse_rms,
                     {d_x, form.gated ? d_gate.part : Tensor(), d_gain, again});
  EXPECT_EQ(testing::read(again.part), testing::read(y.part));
  // A column that is a group by itself is normed to 1: all but epsilon's part of its gradient cancels.
  const double tolerance = (dtype == DType::fp64   ? 1e-11
                            : dtype == DType::bf16 ? 2e-2
                                                   : 3e-5) *
                           (group_width == 1 ? 4.0 : 1.0);
  testing::expect_close(d_x, expected.d_x, tolerance, "d_x", 0.05);
  if (form.gated) {
    testing::expect_close(d_gate, expected.d_gate, tolerance, "d_gate", 0.05);
  }
  Values added = expected.d_gain;
  for (double& value : added) value += 1.0;
  if (gains > 0)
    testing::expect_close(d_gain, added, dtype == DType::fp64 ? 1e-11 : 3e-5 * std::sqrt(static_cast<double>(rows)),
                          "d_gain");
  for (const Sliced* written : {&y, &again, &d_x}) written->expect_margins_untouched();
  // In place, each result where another input lay.
  const Tensor again_gain = gain_sums();
  head_norm_backward(host.execution, norm, d_ys, xs, inverse_rms,
                     {d_ys, form.gated ? gate_values.part : Tensor(), again_gain, xs});
  EXPECT_EQ(testing::read(d_ys.part), testing::read(d_x.part)) << "in place";
  EXPECT_EQ(testing::read(xs.part), testing::read(y.part)) << "in place";
  if (form.gated) {
    EXPECT_EQ(testing::read(gate_values.part), testing::read(d_gate.part)) << "in place";
  }
  if (gains > 0) {
    EXPECT_EQ(testing::read(again_gain), testing::read(d_gain)) << "in place";
  }
}

TEST(HeadNorm, EqualsTheOracleInEveryForm) {
  Random random(87000);
  for (const DType dtype : testing::test_dtypes())
    for (const Form& form : all_forms()) check(dtype, random.integer(1, 70), 3, 24, 8, form, random);
}

TEST(HeadNorm, EqualsTheOracleAtEveryWidthAndAlignment) {
  Random random(87500);
  const std::vector<Form> forms = all_forms();
  std::size_t turn = 0;
  for (const DType dtype : testing::test_dtypes())
    for (const std::int64_t group_width : {3, 7, 8, 64, 100, 128, 256, 512, 1000})
      for (const std::int64_t offset : testing::slice_offsets)
        for (int i = 0; i < 3; ++i, ++turn)
          check(dtype, testing::rows_for(group_width), static_cast<std::int64_t>(1 + turn % 4), group_width, offset,
                forms[turn % forms.size()], random);
}

TEST(HeadNorm, ManyRows) {
  Random random(88000);
  const Form form{GainKind::shared, false, true, Activation::silu, GatePlace::after_norm};
  for (const DType dtype : testing::test_dtypes()) check(dtype, 40000, 2, 8, 0, form, random);
}

TEST(HeadNorm, BackwardEqualsFiniteDifferences) {
  Random random(88500);
  for (const Form& form : all_forms()) {
    Host host;
    const std::int64_t rows = 3, groups = 2, group_width = 5, width = groups * group_width;
    const std::int64_t gains = gain_elements(form, groups, group_width);
    const auto tensor = [&](const Shape& shape) {
      return host.tensor(DType::fp64, shape, random.normals(elements_of(shape)));
    };
    const Values d_y = random.normals(rows * width);
    const Tensor x = tensor({rows, width}), gate = tensor({rows, width});
    const Tensor gain = gains > 0 ? tensor({gains}) : Tensor();
    const HeadNorm norm{group_width,     epsilon,   gain, form.zero_centred, form.gated ? gate : Tensor(),
                        form.activation, form.place};
    const Tensor y = host.poisoned(DType::fp64, {rows, width}), d_x = host.poisoned(DType::fp64, {rows, width});
    const Tensor d_gate = form.gated ? host.poisoned(DType::fp64, {rows, width}) : Tensor();
    const Tensor d_gain = gains > 0 ? host.tensor(DType::fp64, {gains}, Values(gains, 0.0)) : Tensor();
    const Tensor inverse_rms = host.poisoned(DType::fp64, {rows, groups});
    const auto loss = [&] {
      head_norm_forward(host.execution, norm, x, y, inverse_rms);
      return testing::weighted_sum(d_y, testing::read(y));
    };
    loss();
    head_norm_backward(host.execution, norm, host.tensor(DType::fp64, {rows, width}, d_y), x, inverse_rms,
                       {d_x, d_gate, d_gain, {}});
    testing::expect_close(d_x, testing::finite_differences(x, 1e-3, loss), 1e-7, "d_x");
    if (form.gated) testing::expect_close(d_gate, testing::finite_differences(gate, 1e-3, loss), 1e-7, "d_gate");
    if (gains > 0) testing::expect_close(d_gain, testing::finite_differences(gain, 1e-3, loss), 1e-7, "d_gain");
  }
}

TEST(HeadNorm, RefusesWhatDoesNotFit) {
  Host host;
  const Tensor x = host.poisoned(DType::fp64, {3, 6}), inverse_rms = host.poisoned(DType::fp64, {3, 2});
  const auto forward = [&](HeadNorm norm) { head_norm_forward(host.execution, norm, x, x, inverse_rms); };
  EXPECT_THROW(forward({4}), InternalError);
  EXPECT_THROW(forward({2}), InternalError);
  EXPECT_THROW(forward({3, epsilon, host.poisoned(DType::fp64, {2})}), InternalError);
  EXPECT_THROW(forward({3, epsilon, {}, false, x, Activation::gelu_tanh}), InternalError);
  EXPECT_THROW(head_norm_backward(host.execution, {3, epsilon, {}, false, x}, x, x, inverse_rms, {x, {}, {}, {}}),
               InternalError);
}

}  // namespace
}  // namespace fulmen
