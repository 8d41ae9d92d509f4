// Gated recurrences over slices of a sequence: states and their gradients pass between slices as pairs of a transition
// and a state, and what arrives late is added.
#include "tests/kernels/gated_recurrence_cases.h"

namespace fulmen {
namespace {

using testing::GatedCase;
using testing::Gates;
using testing::Host;
using testing::Random;
using testing::Values;
using Problem = reference::GatedRecurrenceProblem;

// Elements [begin, end) of every row of x.
Values elements_by_row(const Values& x, std::int64_t batch, std::int64_t begin, std::int64_t end) {
  Values result;
  const std::int64_t row = std::ssize(x) / batch;
  if (x.empty()) return result;
  for (std::int64_t b = 0; b < batch; ++b)
    result.insert(result.end(), x.begin() + b * row + begin, x.begin() + b * row + end);
  return result;
}

class Slices {
 public:
  Slices(const Problem& whole, std::vector<std::int64_t> bounds) : whole_(whole), bounds_(std::move(bounds)) {}

  std::int64_t count() const { return std::ssize(bounds_) - 1; }

  Values cut(const Values& x, std::int64_t slice) const {
    const std::int64_t per_token = std::ssize(x) / (whole_.batch * whole_.length);
    return elements_by_row(x, whole_.batch, bounds_[slice] * per_token, bounds_[slice + 1] * per_token);
  }

  Problem problem(std::int64_t slice) const {
    Problem p = whole_;
    p.length = bounds_[slice + 1] - bounds_[slice];
    p.query = cut(whole_.query, slice), p.key = cut(whole_.key, slice), p.value = cut(whole_.value, slice);
    p.log_decay = cut(whole_.log_decay, slice), p.beta = cut(whole_.beta, slice);
    p.initial_state.clear(), p.segments.clear();
    for (std::int64_t row = 0; row < p.batch; ++row) {
      p.segments.push_back(row * p.length);
      for (const std::int64_t offset : whole_.segments) {
        const std::int64_t at = offset - row * whole_.length - bounds_[slice];
        if (at > 0 && at < p.length) p.segments.push_back(row * p.length + at);
      }
    }
    p.segments.push_back(p.batch * p.length);
    return p;
  }

  // How far the document at the slice's border goes on to that side, by row.
  std::vector<std::int64_t> reach(std::int64_t slice, SliceSide side) const {
    std::vector<std::int64_t> result;
    for (std::int64_t row = 0; row < whole_.batch; ++row) {
      const std::int64_t border = row * whole_.length + bounds_[side == SliceSide::before ? slice : slice + 1];
      std::int64_t start = row * whole_.length, end = (row + 1) * whole_.length;
      for (const std::int64_t offset : whole_.segments) {
        if (offset <= border) start = std::max(start, offset);
        if (offset >= border) end = std::min(end, offset);
      }
      result.push_back(side == SliceSide::before ? border - start : end - border);
    }
    return result;
  }

  const std::vector<std::int64_t>& bounds() const { return bounds_; }

 private:
  const Problem& whole_;
  std::vector<std::int64_t> bounds_;
};

// Forward and backward of a problem, slice by slice.
class SlicedRun {
 public:
  SlicedRun(Host& host, const Problem& whole, const std::vector<std::int64_t>& bounds, bool late)
      : host_(host), whole_(whole), slices_(whole, bounds), late_(late) {}

  void run(const Values& d_output) {
    std::vector<GatedRecurrenceInputs> inputs;
    for (std::int64_t s = 0; s < slices_.count(); ++s)
      inputs.push_back(testing::make_gated_inputs(host_, slices_.problem(s), DType::fp64));
    columns_ = whole_.value_width + gated_recurrence_transition_columns(inputs[0]);
    const Tensor summaries = make_summaries();
    for (std::int64_t s = 0; s < slices_.count(); ++s)
      gated_recurrence_summary(host_.execution, inputs[s], summaries.select(0, s));
    std::vector<Tensor> initial;
    for (std::int64_t s = 0; s < slices_.count(); ++s) initial.push_back(combine(summaries, s, SliceSide::before));
    for (std::int64_t s = 0; s < slices_.count(); ++s) forward(inputs[s], initial[s], s);
    const Tensor d_summaries = make_summaries();
    for (std::int64_t s = 0; s < slices_.count(); ++s) {
      const Problem p = slices_.problem(s);
      inputs[s].initial_state = state_of(initial[s]);
      GatedRecurrenceGradients own = gradients(p, inputs[s], slices_.cut(d_output, s));
      own.d_initial_state = state_of(d_summaries.select(0, s));
      gated_recurrence_backward(host_.execution, inputs[s], own);
      const Tensor transition = d_summaries.select(0, s).slice(3, whole_.value_width, columns_);
      testing::write(transition, testing::read(initial[s].slice(3, whole_.value_width, columns_)));
    }
    for (std::int64_t s = 0; s < slices_.count(); ++s)
      backward(inputs[s], combine(d_summaries, s, SliceSide::after), s, slices_.cut(d_output, s));
  }

  // By slice.
  std::vector<Values> output;
  std::vector<GatedRecurrenceGradients> derivatives;

 private:
  Tensor make_summaries() {
    return host_.poisoned(DType::fp64, {slices_.count(), whole_.batch, whole_.heads, whole_.key_width, columns_});
  }
  Tensor state_of(const Tensor& summary) const { return summary.slice(3, 0, whole_.value_width); }

  Tensor combine(const Tensor& summaries, std::int64_t slice, SliceSide side) {
    const Tensor out = host_.poisoned(DType::fp64, {whole_.batch, whole_.heads, whole_.key_width, columns_});
    combine_gated_slices(
        host_.execution,
        {summaries, whole_.value_width, host_.integers<std::int64_t>({std::ssize(slices_.bounds())}, slices_.bounds()),
         static_cast<int>(slice)},
        side, host_.integers<std::int64_t>({whole_.batch}, slices_.reach(slice, side)), out);
    return out;
  }

  void forward(GatedRecurrenceInputs inputs, const Tensor& initial, std::int64_t s) {
    const Problem p = slices_.problem(s);
    const Tensor to = testing::make_gated_heads(host_, p, DType::fp64, p.heads, p.value_width);
    if (late_) {
      gated_recurrence_forward(host_.execution, inputs, {to, {}});
      inputs.value = Tensor();
    }
    inputs.initial_state = state_of(initial);
    gated_recurrence_forward(host_.execution, inputs, {.output = to, .final_state = {}, .accumulates = late_});
    output.push_back(testing::read(to));
  }

  GatedRecurrenceGradients gradients(const Problem& p, const GatedRecurrenceInputs& inputs, const Values& d_output) {
    GatedRecurrenceGradients g = testing::make_gated_gradients(host_, p, DType::fp64, inputs, d_output, {});
    g.d_initial_state = Tensor();
    return g;
  }

  void backward(const GatedRecurrenceInputs& inputs, const Tensor& d_final, std::int64_t s, const Values& d_output) {
    GatedRecurrenceGradients g = gradients(slices_.problem(s), inputs, d_output);
    if (late_) {
      gated_recurrence_backward(host_.execution, inputs, g);
      g.d_output = Tensor(), g.accumulates = true;
    }
    g.d_final_state = state_of(d_final);
    gated_recurrence_backward(host_.execution, inputs, g);
    derivatives.push_back(g);
  }

  Host& host_;
  const Problem& whole_;
  Slices slices_;
  bool late_;
  std::int64_t columns_ = 0;
};

TEST(GatedRecurrence, SlicesEqualWhole) {
  std::uint64_t stream = 7500;
  for (const bool per_channel : {false, true})
    for (const int rule : {0, 1, 2})
      for (const bool documents : {false, true})
        for (const bool late : {false, true}) {
          const GatedCase c{.batch = 3,
                            .length = 150,
                            .key_heads = 2,
                            .group = 2,
                            .key_width = 6,
                            .value_width = 5,
                            .per_channel = per_channel,
                            .delta = rule == 1,
                            .bonus = rule == 2,
                            .documents = documents,
                            .gates = documents ? Gates::mild : Gates::extreme};
          Random random(++stream);
          Host host;
          const Problem p = testing::random_gated_problem(c, DType::fp64, random);
          const Values d_output = random.normals(std::ssize(p.value));
          const auto expected = reference::gated_recurrence_forward(p);
          const auto expected_d = reference::gated_recurrence_backward(p, d_output, {});
          const std::vector<std::int64_t> bounds = {0, 17, 90, 131, 150};
          const Slices slices(p, bounds);
          SlicedRun sliced(host, p, bounds, late);
          sliced.run(d_output);
          Values d_bonus(p.bonus.size(), 0.0);
          for (std::int64_t s = 0; s < slices.count(); ++s) {
            const std::string what = fmt::format("slice {} late {}: {}", s, late, c.describe());
            const GatedRecurrenceGradients& g = sliced.derivatives[s];
            testing::expect_close(sliced.output[s], slices.cut(expected.output, s), 1e-12, "output: " + what);
            testing::expect_close(g.d_query, slices.cut(expected_d.d_query, s), 1e-12, "d_query: " + what);
            testing::expect_close(g.d_key, slices.cut(expected_d.d_key, s), 1e-12, "d_key: " + what);
            testing::expect_close(g.d_value, slices.cut(expected_d.d_value, s), 1e-12, "d_value: " + what);
            testing::expect_close(g.d_log_decay, slices.cut(expected_d.d_log_decay, s), 1e-12, "d_log_decay: " + what);
            if (g.d_beta) testing::expect_close(g.d_beta, slices.cut(expected_d.d_beta, s), 1e-12, "d_beta: " + what);
            if (g.d_bonus) {
              const Values own = testing::read(g.d_bonus);
              for (std::size_t i = 0; i < own.size(); ++i) d_bonus[i] += own[i];
            }
          }
          testing::expect_close(d_bonus, expected_d.d_bonus, 1e-12, "d_bonus: " + c.describe());
        }
}

}  // namespace
}  // namespace fulmen
