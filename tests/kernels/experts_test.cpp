// Routing against plain loops, its gradient against finite differences, and the order of tokens by expert.
#include "kernels/experts.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/router_loss.h"
#include "tests/kernels/kernel_test.h"

namespace fulmen {
namespace {

using testing::Host;
using testing::Random;
using testing::Values;

struct Routed {
  Values probabilities, weights;
};

Routed route(const Values& logits, std::int64_t experts, std::int64_t chosen) {
  Routed routed{logits, Values(logits.size(), 0.0)};
  for (std::size_t begin = 0; begin < logits.size(); begin += static_cast<std::size_t>(experts)) {
    double sum = 0.0, of_chosen = 0.0;
    for (std::int64_t e = 0; e < experts; ++e) sum += std::exp(logits[begin + e]);
    for (std::int64_t e = 0; e < experts; ++e) routed.probabilities[begin + e] = std::exp(logits[begin + e]) / sum;
    std::vector<std::int64_t> order(experts);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
      return routed.probabilities[begin + a] > routed.probabilities[begin + b];
    });
    for (std::int64_t i = 0; i < chosen; ++i) of_chosen += routed.probabilities[begin + order[i]];
    for (std::int64_t i = 0; i < chosen; ++i)
      routed.weights[begin + order[i]] = routed.probabilities[begin + order[i]] / of_chosen;
  }
  return routed;
}

TEST(Router, ChoosesTheLargestAndDifferentiates) {
  Random random(82000);
  for (const auto& [tokens, experts, chosen] :
       {std::tuple<std::int64_t, std::int64_t, std::int64_t>{9, 5, 2}, {4, 40, 3}, {3, 4, 4}, {5, 1, 1}}) {
    const Values logits = random.normals(tokens * experts), d_p = random.normals(tokens * experts),
                 d_w = random.normals(tokens * experts);
    Host host;
    const Shape shape{tokens, experts};
    const Tensor probabilities = host.poisoned(DType::fp64, shape), weights = host.poisoned(DType::fp64, shape);
    router_forward(host.execution, host.strided(DType::fp64, tokens, experts, 3, logits), chosen, probabilities,
                   weights);
    const Routed expected = route(logits, experts, chosen);
    testing::expect_close(probabilities, expected.probabilities, 1e-14, "probabilities");
    testing::expect_close(weights, expected.weights, 1e-14, "weights");

    const Tensor d_logits = host.poisoned_strided(DType::fp64, tokens, experts, 2);
    router_backward(host.execution, probabilities, weights, host.tensor(DType::fp64, shape, d_p),
                    host.tensor(DType::fp64, shape, d_w), d_logits);
    const auto value = [&](const Values& at) {
      const Routed routed = route(at, experts, chosen);
      double sum = 0.0;
      for (std::size_t i = 0; i < at.size(); ++i) sum += routed.probabilities[i] * d_p[i] + routed.weights[i] * d_w[i];
      return sum;
    };
    Values gradient(logits.size());
    for (std::size_t i = 0; i < logits.size(); ++i) {
      Values up = logits, down = logits;
      up[i] += 1e-5, down[i] -= 1e-5;
      gradient[i] = (value(up) - value(down)) / 2e-5;
    }
    testing::expect_close(d_logits, gradient, 1e-8, "d_logits", 1.0);
  }
}

void check_order(std::int64_t alignment) {
  Random random(82500);
  const std::int64_t tokens = 70, experts = 6, chosen = 2, width = 19, first = 1, owned = 4;
  const std::int64_t places = most_expert_places(tokens, chosen, owned, alignment);
  const Routed routed = route(random.normals(tokens * experts), experts, chosen);
  const Values x = random.normals(tokens * width);
  Host host;
  const Tensor weights = host.tensor(DType::fp64, {tokens, experts}, routed.weights);
  const ExpertOrder order{host.integers<std::int32_t>({places}, std::vector<std::int32_t>(places)),
                          host.integers<std::int32_t>({places}, std::vector<std::int32_t>(places, 1 << 28)),
                          host.integers<std::int32_t>({tokens, chosen}, std::vector<std::int32_t>(tokens * chosen)),
                          host.integers<std::int64_t>({owned + 1}, std::vector<std::int64_t>(owned + 1))};
  order_by_expert(host.execution, weights, first, chosen, alignment, order);
  std::vector<std::int32_t> expected_tokens, expected_experts;
  for (std::int64_t e = 0; e < owned; ++e) {
    for (std::int64_t t = 0; t < tokens; ++t)
      if (routed.weights[t * experts + first + e] > 0.0) {
        expected_tokens.push_back(static_cast<std::int32_t>(t));
        expected_experts.push_back(static_cast<std::int32_t>(e));
      }
    while (std::ssize(expected_tokens) % alignment != 0) expected_tokens.push_back(-1), expected_experts.push_back(0);
  }
  const auto count = static_cast<std::int64_t>(expected_tokens.size());
  auto of_tokens = testing::read_integers<std::int32_t>(order.tokens);
  of_tokens.resize(expected_tokens.size());
  EXPECT_EQ(of_tokens, expected_tokens);
  EXPECT_EQ(testing::read_integers<std::int64_t>(order.offsets).back(), count);

  const Tensor rows = host.poisoned_strided(DType::fp64, count, width, 3),
               out = host.poisoned(DType::fp64, {tokens, width});
  gather_rows(host.execution, host.strided(DType::fp64, tokens, width, 2, x), order.tokens, rows);
  weigh_rows(host.execution, order, weights, first, rows);
  combine_rows(host.execution, rows, order.places, out);
  Values expected(x.size(), 0.0);
  for (std::int64_t i = 0; i < count; ++i)
    for (std::int64_t c = 0; c < width && expected_tokens[i] >= 0; ++c)
      expected[expected_tokens[i] * width + c] +=
          routed.weights[expected_tokens[i] * experts + first + expected_experts[i]] *
          x[expected_tokens[i] * width + c];
  testing::expect_close(out, expected, 1e-14, "weighted sums");

  const Values values = random.normals(count * width), gradients = random.normals(count * width);
  const Tensor y = host.tensor(DType::fp64, {count, width}, values),
               d_y = host.tensor(DType::fp64, {count, width}, gradients);
  const Tensor d_weights = host.tensor(DType::fp64, {tokens, experts}, Values(tokens * experts, 0.0));
  weigh_rows_backward(host.execution, order, weights, first, d_y, y, d_weights);
  Values dots(tokens * experts, 0.0), weighed = values, d_weighed = gradients;
  for (std::int64_t i = 0; i < count; ++i)
    for (std::int64_t c = 0; c < width && expected_tokens[i] >= 0; ++c) {
      const std::int64_t at = expected_tokens[i] * experts + first + expected_experts[i];
      dots[at] += values[i * width + c] * gradients[i * width + c];
      weighed[i * width + c] *= routed.weights[at];
      d_weighed[i * width + c] *= routed.weights[at];
    }
  testing::expect_close(d_weights, dots, 1e-13, "d_weights", 1.0);
  testing::expect_close(y, weighed, 1e-14, "y");
  testing::expect_close(d_y, d_weighed, 1e-14, "d_y");
}

TEST(Experts, BringTokensTogetherAndBack) {
  for (const std::int64_t alignment : {1, 16}) check_order(alignment);
}

// Damaged weights or a training that diverged must show in the loss: a token without experts would hide them.
TEST(Experts, ATokenWhoseLogitsAreNotANumberHasNoResult) {
  const std::int64_t tokens = 3, experts = 40, chosen = 2, width = 5;
  Random random(82700);
  Values logits = random.normals(tokens * experts);
  logits[experts + 7] = std::nan("");
  Host host;
  const Tensor probabilities = host.poisoned(DType::fp64, {tokens, experts}),
               weights = host.poisoned(DType::fp64, {tokens, experts});
  router_forward(host.execution, host.tensor(DType::fp64, {tokens, experts}, logits), chosen, probabilities, weights);
  const ExpertOrder order{host.integers<std::int32_t>({tokens * chosen}, std::vector<std::int32_t>(tokens * chosen)),
                          host.integers<std::int32_t>({tokens * chosen}, std::vector<std::int32_t>(tokens * chosen)),
                          host.integers<std::int32_t>({tokens, chosen}, std::vector<std::int32_t>(tokens * chosen)),
                          host.integers<std::int64_t>({experts + 1}, std::vector<std::int64_t>(experts + 1))};
  order_by_expert(host.execution, weights, 0, chosen, 1, order);
  EXPECT_EQ(testing::read_integers<std::int64_t>(order.offsets).back(), tokens * chosen);
  const Tensor x = host.tensor(DType::fp64, {tokens, width}, random.normals(tokens * width)),
               rows = host.poisoned(DType::fp64, {tokens * chosen, width}),
               out = host.poisoned(DType::fp64, {tokens, width});
  gather_rows(host.execution, x, order.tokens, rows);
  weigh_rows(host.execution, order, weights, 0, rows);
  combine_rows(host.execution, rows, order.places, out);
  const Values result = testing::read(out), expected = testing::read(x);
  for (std::int64_t t = 0; t < tokens; ++t)
    for (std::int64_t c = 0; c < width; ++c)
      if (t == 1)
        EXPECT_TRUE(std::isnan(result[t * width + c]));
      else
        EXPECT_NEAR(result[t * width + c], expected[t * width + c], 1e-14);
}

TEST(RouterLoss, IsTheProductOfMeans) {
  Random random(82900);
  const std::int64_t batch = 3, length = 7, experts = 5, chosen = 2;
  const Routed routed = route(random.normals(batch * length * experts), experts, chosen);
  Host host;
  const Shape shape{batch * length, experts};
  const Tensor sums = host.poisoned(DType::fp64, {batch, 2 * experts + 1});
  router_loss_sums(host.execution, host.tensor(DType::fp64, shape, routed.weights),
                   host.tensor(DType::fp64, shape, routed.probabilities), sums);
  double expected = 0.25;
  Values gradient(routed.weights.size());
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t e = 0; e < experts; ++e) {
      double f = 0.0, p = 0.0;
      for (std::int64_t t = b * length; t < (b + 1) * length; ++t) {
        f += routed.weights[t * experts + e] > 0.0 ? 1.0 / length : 0.0;
        p += routed.probabilities[t * experts + e] / length;
      }
      expected += 0.7 * experts * f * p;
      for (std::int64_t t = b * length; t < (b + 1) * length; ++t)
        gradient[t * experts + e] = 0.7 * experts * f / length;
    }
  const Tensor loss = host.tensor(DType::fp64, {1}, {0.25});
  router_loss_add(host.execution, sums, 0.7, loss);
  testing::expect_close(loss, {expected}, 1e-14, "loss");
  const Tensor d_probabilities = host.poisoned(DType::fp64, shape);
  router_loss_backward(host.execution, sums, 0.7, d_probabilities);
  testing::expect_close(d_probabilities, gradient, 1e-14, "d_probabilities");
}

}  // namespace
}  // namespace fulmen
