// Random problems for the tests of gated recurrences, as the oracle and as the kernels take them.
#pragma once

#include "kernels/gated_recurrence.h"
#include "kernels/reference/gated_recurrence.h"
#include "tests/kernels/attention_cases.h"

namespace fulmen::testing {

enum class Gates : std::uint8_t {
  mild,     // decays of 0.2 to 1 a token, rates between 0 and 1
  extreme,  // logarithms of decays from -1000, and -infinity, to 0; rates of 0, 1 and between
};

struct GatedCase {
  std::int64_t batch = 1, length = 1, key_heads = 1, group = 1, key_width = 1, value_width = 1;
  bool per_channel = false, delta = false, bonus = false, initial_state = false, documents = false;
  Gates gates = Gates::mild;

  std::string describe() const {
    return fmt::format(
        "batch {} length {} key heads {} x {} key {} value {} per channel {} delta {} bonus {} initial {} documents {} "
        "gates {}",
        batch, length, key_heads, group, key_width, value_width, per_channel, delta, bonus, initial_state, documents,
        static_cast<int>(gates));
  }
};

// Every kind of recurrence at lengths around the chunk's 64 tokens and its blocks of 16.
inline std::vector<GatedCase> gated_cases() {
  std::vector<GatedCase> cases;
  for (const bool per_channel : {false, true})
    for (const int rule : {0, 1, 2})
      for (const Gates gates : {Gates::mild, Gates::extreme}) {
        GatedCase c;
        c.per_channel = per_channel, c.delta = rule == 1, c.bonus = rule == 2, c.gates = gates;
        const auto add = [&](GatedCase shape) {
          shape.per_channel = per_channel, shape.delta = rule == 1, shape.bonus = rule == 2, shape.gates = gates;
          cases.push_back(shape);
        };
        add({.batch = 2, .length = 1, .key_heads = 2, .key_width = 3, .value_width = 5, .initial_state = true});
        add({.length = 16, .key_width = 4, .value_width = 4});
        add({.batch = 2, .length = 33, .group = 3, .key_width = 7, .value_width = 6, .initial_state = true});
        add({.length = 64, .key_heads = 2, .key_width = 16, .value_width = 8});
        add({.batch = 2,
             .length = 149,
             .key_heads = 2,
             .group = 2,
             .key_width = 24,
             .value_width = 17,
             .initial_state = true,
             .documents = true});
        add({.length = 200, .key_width = 40, .value_width = 33, .initial_state = true});
      }
  return cases;
}

inline reference::GatedRecurrenceProblem random_gated_problem(const GatedCase& c, DType dtype, Random& random) {
  reference::GatedRecurrenceProblem p;
  p.batch = c.batch, p.length = c.length, p.key_heads = c.key_heads, p.heads = c.key_heads * c.group;
  p.key_width = c.key_width, p.value_width = c.value_width, p.per_channel = c.per_channel;
  p.scale = 1.0 / std::sqrt(static_cast<double>(c.key_width));
  const std::int64_t rows = c.batch * c.length, tokens = rows * p.heads;
  p.query = rounded(random.normals(rows * c.key_heads * c.key_width), dtype);
  p.key = random.normals(rows * c.key_heads * c.key_width);
  // The delta rule wants keys of norm 1: with longer keys the state may grow.
  for (std::size_t at = 0; at < p.key.size() && c.delta; at += static_cast<std::size_t>(c.key_width)) {
    double squares = 0;
    for (std::int64_t i = 0; i < c.key_width; ++i) squares += p.key[at + i] * p.key[at + i];
    for (std::int64_t i = 0; i < c.key_width; ++i) p.key[at + i] /= std::sqrt(squares);
  }
  p.key = rounded(p.key, dtype);
  p.value = rounded(random.normals(tokens * c.value_width), dtype);
  const DType wide = accumulation_dtype(dtype);
  for (std::int64_t i = 0; i < tokens * p.decay_width(); ++i) {
    double log_decay = std::log(random.uniform(0.2, 1.0));
    const std::int64_t kind = random.integer(0, 7);
    if (c.gates == Gates::extreme && kind < 6)
      log_decay = kind == 0   ? 0.0
                  : kind == 1 ? -1000.0
                  : kind == 2 ? -std::numeric_limits<double>::infinity()
                  : kind == 3 ? -80.0
                              : -std::pow(10.0, random.uniform(-6, 1));
    p.log_decay.push_back(log_decay);
  }
  p.log_decay = rounded(p.log_decay, wide);
  for (std::int64_t i = 0; i < tokens && c.delta; ++i) {
    const std::int64_t kind = random.integer(0, 3);
    p.beta.push_back(c.gates == Gates::extreme && kind < 2 ? static_cast<double>(kind) : random.uniform(0, 1));
  }
  p.beta = rounded(p.beta, wide);
  if (c.bonus) p.bonus = rounded(random.normals(p.heads * c.key_width), wide);
  p.segments = random_segments(c.batch, c.length, c.documents, random);
  if (c.initial_state) p.initial_state = rounded(random.normals(c.batch * p.heads * c.key_width * c.value_width), wide);
  return p;
}

inline Shape gated_state_shape(const reference::GatedRecurrenceProblem& p) {
  return {p.batch, p.heads, p.key_width, p.value_width};
}

// [batch, length, heads, width] within rows of further elements, poisoned.
inline Tensor make_gated_heads(Host& host, const reference::GatedRecurrenceProblem& p, DType dtype, std::int64_t heads,
                               std::int64_t width) {
  return heads_of(host.poisoned(dtype, {p.batch * p.length, heads * width + 5}), 2, p.length, heads, width);
}

inline GatedRecurrenceInputs make_gated_inputs(Host& host, const reference::GatedRecurrenceProblem& p, DType dtype) {
  const DType wide = accumulation_dtype(dtype);
  GatedRecurrenceInputs inputs;
  inputs.query = make_gated_heads(host, p, dtype, p.key_heads, p.key_width);
  inputs.key = make_gated_heads(host, p, dtype, p.key_heads, p.key_width);
  inputs.value = make_gated_heads(host, p, dtype, p.heads, p.value_width);
  write(inputs.query, p.query), write(inputs.key, p.key), write(inputs.value, p.value);
  Shape decays = {p.batch, p.length, p.heads};
  if (!p.beta.empty()) inputs.beta = host.tensor(wide, decays, p.beta);
  if (p.per_channel) decays.push_back(p.key_width);
  inputs.log_decay = host.tensor(wide, decays, p.log_decay);
  if (!p.bonus.empty()) inputs.bonus = host.tensor(wide, {p.heads, p.key_width}, p.bonus);
  inputs.scale = p.scale;
  inputs.segments = host.integers<std::int64_t>({static_cast<std::int64_t>(p.segments.size())}, p.segments);
  if (!p.initial_state.empty()) inputs.initial_state = host.tensor(wide, gated_state_shape(p), p.initial_state);
  return inputs;
}

inline GatedRecurrenceGradients make_gated_gradients(Host& host, const reference::GatedRecurrenceProblem& p,
                                                     DType dtype, const GatedRecurrenceInputs& inputs,
                                                     const Values& d_output, const Values& d_final_state) {
  const DType wide = accumulation_dtype(dtype);
  GatedRecurrenceGradients g;
  g.d_output = make_gated_heads(host, p, dtype, p.heads, p.value_width);
  write(g.d_output, d_output);
  if (!d_final_state.empty()) g.d_final_state = host.tensor(wide, gated_state_shape(p), d_final_state);
  g.d_query = make_gated_heads(host, p, dtype, p.key_heads, p.key_width);
  g.d_key = make_gated_heads(host, p, dtype, p.key_heads, p.key_width);
  g.d_value = make_gated_heads(host, p, dtype, p.heads, p.value_width);
  g.d_log_decay = host.poisoned(wide, inputs.log_decay.shape());
  if (inputs.beta) g.d_beta = host.poisoned(wide, inputs.beta.shape());
  if (inputs.bonus) g.d_bonus = host.tensor(wide, inputs.bonus.shape(), Values(inputs.bonus.elements(), 0.0));
  if (inputs.initial_state) g.d_initial_state = host.poisoned(wide, gated_state_shape(p));
  return g;
}

inline void expect_gradients(const GatedRecurrenceGradients& actual,
                             const reference::GatedRecurrenceDerivatives& expected, double tolerance,
                             const std::string& what) {
  expect_close(actual.d_query, expected.d_query, tolerance, "d_query: " + what);
  expect_close(actual.d_key, expected.d_key, tolerance, "d_key: " + what);
  expect_close(actual.d_value, expected.d_value, tolerance, "d_value: " + what);
  expect_close(actual.d_log_decay, expected.d_log_decay, tolerance, "d_log_decay: " + what);
  if (actual.d_beta) expect_close(actual.d_beta, expected.d_beta, tolerance, "d_beta: " + what);
  if (actual.d_bonus) expect_close(actual.d_bonus, expected.d_bonus, tolerance, "d_bonus: " + what);
  if (actual.d_initial_state)
    expect_close(actual.d_initial_state, expected.d_initial_state, tolerance, "d_initial_state: " + what);
}

// The gradients of the decays are differences of larger sums.
inline double gated_tolerance(DType dtype) { return dtype == DType::fp32 ? 5e-5 : tolerance_of(dtype); }

}  // namespace fulmen::testing
