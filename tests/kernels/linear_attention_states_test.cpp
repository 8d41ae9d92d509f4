// A sequence cut into slices on one device, without any communication. The slices compute from their own tokens and the
// states that they pass on. The result is the oracle's for the whole sequence.
#include "kernels/linear_attention_states.h"

#include "tests/kernels/attention_cases.h"

namespace fulmen {
namespace {

using testing::AttentionCase;
using testing::Host;
using testing::Layout;
using testing::Random;
using testing::Values;

std::vector<AttentionCase> sliced_cases() {
  std::vector<AttentionCase> cases;
  const std::int64_t lengths[] = {2, 3, 7, 65, 130, 200};
  std::size_t i = 0;
  for (const std::int64_t length : lengths)
    for (int variant = 0; variant < 4; ++variant, ++i)
      cases.push_back({.batch = 1 + static_cast<std::int64_t>(i % 3),
                       .length = length,
                       .heads = 1 + static_cast<std::int64_t>(i % 2),
                       .key_width = std::array{16, 5, 33}[i % 3],
                       .value_width = std::array{24, 16, 7, 33}[i % 4],
                       .slope = std::array{0.5, 0.02, 1e-3}[i % 3],
                       .lrpe = variant % 2 == 1,
                       .documents = variant >= 1,
                       .layout = static_cast<Layout>(i % 3),
                       .value_activation = i % 5 == 0 ? Activation::silu : Activation::none});
  // Cases that the fast path takes, with slices that it cuts into pieces, and decays that keep all of a slice in sight
  // or little.
  if (testing::on_gpu())
    for (const std::int64_t width : {64, 128})
      for (int variant = 0; variant < 4; ++variant)
        cases.push_back({.length = 1200,
                         .heads = 1,
                         .key_width = width,
                         .value_width = width,
                         .slope = variant % 2 == 0 ? 0.3 : 1e-3,
                         .lrpe = variant == 3,
                         .documents = variant >= 1,
                         .layout = Layout::aligned,
                         .value_activation = variant == 2 ? Activation::silu : Activation::none});
  return cases;
}

// The whole problem's tensors, and the views and states of its slices.
class Slices {
 public:
  Slices(const AttentionCase& c, DType dtype, Random& random)
      : dtype_(dtype),
        problem(testing::random_problem(c, dtype, random)),
        count_(random.integer(2, std::min<std::int64_t>(8, c.length))) {
    std::vector<std::int64_t> cuts;  // anywhere, no slice empty
    for (std::int64_t t = 1; t < c.length; ++t) cuts.push_back(t);
    for (std::size_t k = cuts.size(); k > 1; --k)
      std::swap(cuts[k - 1], cuts[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(k) - 1))]);
    bounds.assign(cuts.begin(), cuts.begin() + count_ - 1);
    bounds.push_back(0);
    bounds.push_back(c.length);
    std::sort(bounds.begin(), bounds.end());
    whole = testing::make_inputs(host, problem, dtype, c.layout);
    states = host.poisoned(accumulation_dtype(dtype), {count_, c.batch, c.heads, problem.state_width(), c.value_width});
    device_bounds = host.integers<std::int64_t>({count_ + 1}, bounds);
  }

  std::int64_t count() const { return count_; }
  std::int64_t begin(std::int64_t slice) const { return bounds[static_cast<std::size_t>(slice)]; }
  std::int64_t end(std::int64_t slice) const { return bounds[static_cast<std::size_t>(slice) + 1]; }
  Tensor part(const Tensor& x, std::int64_t slice) const { return x.slice(1, begin(slice), end(slice)); }

  LinearAttentionInputs inputs(std::int64_t slice) {
    LinearAttentionInputs own = whole;
    own.query = part(whole.query, slice), own.key = part(whole.key, slice), own.value = part(whole.value, slice);
    if (whole.theta) own.positions = part(whole.positions, slice);
    std::vector<std::int64_t> segments;
    const std::int64_t length = end(slice) - begin(slice);
    for (std::int64_t row = 0; row < problem.batch; ++row) {
      segments.push_back(row * length);
      for (const std::int64_t offset : problem.segments) {
        const std::int64_t at = offset - row * problem.length;
        if (at > begin(slice) && at < end(slice)) segments.push_back(row * length + at - begin(slice));
      }
    }
    segments.push_back(problem.batch * length);
    own.segments = host.integers<std::int64_t>({static_cast<std::int64_t>(segments.size())}, segments);
    return own;
  }

  // How far the document at either end of a slice goes on outside it, per row.
  std::vector<std::int64_t> reach(std::int64_t slice, SliceSide side) const {
    std::vector<std::int64_t> result;
    for (std::int64_t row = 0; row < problem.batch; ++row) {
      std::int64_t first = 0, next = problem.length;
      for (const std::int64_t offset : problem.segments) {
        const std::int64_t at = offset - row * problem.length;
        if (at >= 0 && at <= begin(slice)) first = std::max(first, at);
        if (at >= end(slice)) next = std::min(next, at);
      }
      result.push_back(side == SliceSide::before ? begin(slice) - first : next - end(slice));
    }
    return result;
  }

  Tensor combine(std::int64_t slice, SliceSide side) {
    const Tensor out = host.poisoned(states.dtype(), testing::state_shape(problem));
    const Tensor reaches = host.integers<std::int64_t>({problem.batch}, reach(slice, side));
    combine_slice_states(host.execution, {states, whole.slope, device_bounds, static_cast<int>(slice)}, side, reaches,
                         out);
    return out;
  }

 private:
  DType dtype_;

 public:
  Host host;
  reference::LinearAttentionProblem problem;
  std::vector<std::int64_t> bounds;
  LinearAttentionInputs whole;
  Tensor states, device_bounds;

 private:
  std::int64_t count_;
};

TEST(LinearAttentionStates, SlicesMakeTheWholeForward) {
  std::uint64_t stream = 0;
  for (const AttentionCase& c : sliced_cases()) {
    for (const DType dtype : testing::test_dtypes()) {
      Random random(++stream);
      Slices slices(c, dtype, random);
      const auto expected = reference::linear_attention_forward(slices.problem);
      Host& host = slices.host;
      std::vector<Tensor> pieces;
      for (std::int64_t s = 0; s < slices.count(); ++s) {
        pieces.push_back(testing::make_piece_states(host, slices.inputs(s)));
        linear_attention_final_state(host.execution, slices.inputs(s), slices.states.select(0, s), pieces.back());
      }
      const Tensor at_once = testing::make_heads(host, slices.problem, dtype, c.layout, c.value_width);
      const Tensor later = testing::make_heads(host, slices.problem, dtype, c.layout, c.value_width);
      for (std::int64_t s = 0; s < slices.count(); ++s) {
        LinearAttentionInputs inputs = slices.inputs(s);
        const Shape squares_shape = {c.batch * (slices.end(s) - slices.begin(s)), c.heads};
        const Tensor squares_at_once = host.poisoned(accumulation_dtype(dtype), squares_shape);
        const Tensor squares_later = host.poisoned(accumulation_dtype(dtype), squares_shape);
        linear_attention_forward(host.execution, inputs, {slices.part(later, s), squares_later, {}});
        inputs.initial_state = slices.combine(s, SliceSide::before);
        linear_attention_add_initial_state(host.execution, inputs, {slices.part(later, s), squares_later, {}});
        const Tensor& kept = pieces[static_cast<std::size_t>(s)];
        linear_attention_forward(host.execution, inputs,
                                 {slices.part(at_once, s), squares_at_once, {}, kept, !kept.is_null()});
        testing::expect_close(squares_later, testing::read(squares_at_once), testing::tolerance_of(dtype),
                              fmt::format("square sums of slice {}: {}", s, c.describe()));
      }
      testing::expect_close(at_once, expected.output, testing::tolerance_of(dtype), "state first: " + c.describe());
      testing::expect_close(later, expected.output, testing::tolerance_of(dtype), "state added: " + c.describe());
    }
  }
}

// The start of the backward pass of slices, by slice.
struct SliceStates {
  std::vector<Tensor> before;                         // the state before the slice
  std::vector<Tensor> piece_states, piece_gradients;  // of the pieces that a GPU cuts it into
};

SliceStates pass_states(Slices& slices, const AttentionCase& c, DType dtype, const Tensor& upstream) {
  Host& host = slices.host;
  SliceStates result;
  for (std::int64_t s = 0; s < slices.count(); ++s) {
    const Tensor& kept = result.piece_states.emplace_back(testing::make_piece_states(host, slices.inputs(s)));
    linear_attention_final_state(host.execution, slices.inputs(s), slices.states.select(0, s), kept);
  }
  for (std::int64_t s = 0; s < slices.count(); ++s) result.before.push_back(slices.combine(s, SliceSide::before));
  for (std::int64_t s = 0; s < slices.count(); ++s) {
    const Tensor& kept = result.piece_gradients.emplace_back(testing::make_piece_states(host, slices.inputs(s)));
    linear_attention_initial_state_gradient(host.execution, slices.inputs(s), slices.part(upstream, s),
                                            slices.states.select(0, s), kept);
  }
  // The states that the pieces make of zero become their initial states.
  for (std::int64_t s = 0; s < slices.count(); ++s) {
    LinearAttentionInputs inputs = slices.inputs(s);
    inputs.initial_state = result.before[static_cast<std::size_t>(s)];
    const Tensor& kept = result.piece_states[static_cast<std::size_t>(s)];
    const Tensor output = testing::make_heads(host, slices.problem, dtype, c.layout, c.value_width);
    linear_attention_forward(host.execution, inputs, {slices.part(output, s), {}, {}, kept, !kept.is_null()});
  }
  return result;
}

// The gradients of all slices. The states' share of them is added afterwards, or comes in the same pass from the states
// of pieces that are there.
void run_backward(Slices& slices, const SliceStates& states, const Tensor& upstream, const testing::Triple& triple,
                  const Tensor& d_theta, bool added) {
  for (std::int64_t s = 0; s < slices.count(); ++s) {
    LinearAttentionInputs inputs = slices.inputs(s);
    inputs.initial_state = states.before[static_cast<std::size_t>(s)];
    LinearAttentionGradients gradients;
    gradients.d_output = slices.part(upstream, s);
    gradients.d_query = slices.part(triple.query, s);
    gradients.d_key = slices.part(triple.key, s);
    gradients.d_value = slices.part(triple.value, s);
    gradients.d_theta = d_theta;
    const Tensor after = slices.combine(s, SliceSide::after);
    if (!added) {
      gradients.d_final_state = after;
      inputs.piece_states = states.piece_states[static_cast<std::size_t>(s)];
      gradients.piece_gradients = states.piece_gradients[static_cast<std::size_t>(s)];
    }
    linear_attention_backward(slices.host.execution, inputs, gradients);
    gradients.d_final_state = after;
    if (added) linear_attention_add_final_state_gradient(slices.host.execution, inputs, gradients);
  }
}

TEST(LinearAttentionStates, SlicesMakeTheWholeBackward) {
  std::uint64_t stream = 1000;
  for (const AttentionCase& c : sliced_cases()) {
    for (const DType dtype : testing::test_dtypes()) {
      Random random(++stream);
      Slices slices(c, dtype, random);
      const auto& problem = slices.problem;
      Host& host = slices.host;
      const Values d_output = testing::rounded(random.normals(c.batch * c.length * c.heads * c.value_width), dtype);
      const auto expected = reference::linear_attention_backward(problem, d_output, {});
      const Tensor upstream = testing::make_heads(host, problem, dtype, c.layout, c.value_width);
      testing::write(upstream, d_output);
      const SliceStates states = pass_states(slices, c, dtype, upstream);

      // One token sees itself at no distance, where the terms of theta's gradient cancel: what it is added to sets the
      // scale.
      const Values theta_before = random.normals(static_cast<std::int64_t>(problem.theta.size()));
      for (const bool added : {false, true}) {
        const testing::Triple triple = testing::make_triple(host, problem, dtype, c.layout);
        Tensor d_theta;
        if (c.lrpe) d_theta = host.tensor(DType::fp64, {c.heads, c.key_width}, theta_before);
        run_backward(slices, states, upstream, triple, d_theta, added);
        const std::string name = fmt::format("{}: {}", added ? "state added" : "state first", c.describe());
        const double tolerance = testing::tolerance_of(dtype);
        testing::expect_close(triple.query, expected.d_query, tolerance, "d_query, " + name);
        testing::expect_close(triple.key, expected.d_key, tolerance, "d_key, " + name);
        testing::expect_close(triple.value, expected.d_value, tolerance, "d_value, " + name);
        if (c.lrpe && dtype != DType::bf16)
          testing::expect_close(d_theta, testing::sum_of(expected.d_theta, theta_before),
                                dtype == DType::fp64 ? tolerance : 1e-3, "d_theta, " + name);
      }
    }
  }
}

// Distances and reaches by hand: three slices of 2, 3 and 1 tokens, states of one element.
TEST(LinearAttentionStates, CombinesWhatTheDocumentReaches) {
  Host host;
  const Tensor states = host.tensor(DType::fp64, {3, 1, 1, 1, 1}, {1.0, 10.0, 100.0});
  const Tensor slope = host.tensor(DType::fp64, {1}, {std::log(2.0)});
  const Tensor bounds = host.integers<std::int64_t>({4}, {0, 2, 5, 6});
  const auto combined = [&](int slice, SliceSide side, std::int64_t reach) {
    const Tensor out = host.poisoned(DType::fp64, {1, 1, 1, 1});
    combine_slice_states(host.execution, {states, slope, bounds, slice}, side,
                         host.integers<std::int64_t>({1}, {reach}), out);
    return testing::read(out)[0];
  };
  EXPECT_DOUBLE_EQ(combined(0, SliceSide::before, 0), 0.0);
  EXPECT_DOUBLE_EQ(combined(2, SliceSide::before, 0), 0.0);   // a document begins with the slice
  EXPECT_DOUBLE_EQ(combined(2, SliceSide::before, 3), 10.0);  // with the slice before
  EXPECT_DOUBLE_EQ(combined(2, SliceSide::before, 4), 10.0 + 0.125);
  EXPECT_DOUBLE_EQ(combined(0, SliceSide::after, 6), 10.0 + 12.5);
  EXPECT_DOUBLE_EQ(combined(0, SliceSide::after, 3), 10.0);
  EXPECT_DOUBLE_EQ(combined(2, SliceSide::after, 0), 0.0);
}

}  // namespace
}  // namespace fulmen
