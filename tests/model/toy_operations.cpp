// Operations of the tests' own family.
#include "tests/model/toy_operations.h"

#include <algorithm>
#include <cmath>

#include "kernels/dispatch.h"
#include "kernels/elementwise.h"

namespace fulmen {

namespace {

// A matrix of any row stride.
template <class T>
struct Matrix {
  explicit Matrix(const Tensor& tensor)
      : data(tensor.as<T>()), rows(tensor.size(0)), columns(tensor.size(1)), stride(tensor.stride(0)) {}
  T& operator()(std::int64_t row, std::int64_t column) const { return data[row * stride + column]; }
  T* data;
  std::int64_t rows, columns, stride;
};

template <class T>
T& at(const Tensor& matrix, std::int64_t row, std::int64_t column) {
  return Matrix<T>(matrix)(row, column);
}

template <class F>
void dispatch(const Tensor& tensor, const F& f) {
  dispatch_fp32_fp64(tensor.dtype(), f);
}

// Where the documents of a micro-batch lie.
class Documents {
 public:
  explicit Documents(const MicroBatch& micro_batch) : batch_(micro_batch), begin_(tokens(), 0), end_(tokens(), 0) {
    std::vector<std::int64_t> bounds;
    for (std::int64_t row = 0; row <= micro_batch.shape.batch; ++row) bounds.push_back(row * micro_batch.shape.length);
    if (micro_batch.segments)
      bounds.insert(bounds.end(), micro_batch.segments.as<std::int64_t>(),
                    micro_batch.segments.as<std::int64_t>() + micro_batch.segments.size(0));
    std::ranges::sort(bounds);
    for (std::size_t i = 0; i + 1 < bounds.size(); ++i)
      for (std::int64_t t = bounds[i]; t < bounds[i + 1]; ++t) {
        begin_[static_cast<std::size_t>(t)] = bounds[i];
        end_[static_cast<std::size_t>(t)] = bounds[i + 1];
      }
  }
  std::size_t tokens() const { return static_cast<std::size_t>(batch_.shape.tokens()); }
  std::int64_t begin(std::int64_t t) const { return begin_[static_cast<std::size_t>(t)]; }
  std::int64_t row(std::int64_t t) const { return t / batch_.shape.length; }
  bool first_of_row(std::int64_t t) const { return begin(t) == row(t) * batch_.shape.length; }
  bool last_of_row(std::int64_t t) const {
    return end_[static_cast<std::size_t>(t)] == (row(t) + 1) * batch_.shape.length;
  }
  // Tokens of the row's first document in front of the slice; without slices as many as are asked for (decoding).
  std::int64_t before(std::int64_t row) const {
    return batch_.tokens_before ? batch_.tokens_before.as<std::int64_t>()[row] : batch_.shape.tokens() + 1000;
  }

 private:
  const MicroBatch& batch_;
  std::vector<std::int64_t> begin_, end_;
};

// The token `distance` in front of t, in x or in the halo, or none.
struct Neighbour {
  std::int64_t token = -1;     // of x
  std::int64_t halo_row = -1;  // of before, [batch * halo, width]
};
Neighbour neighbour(const Documents& documents, const MicroBatch& batch, std::int64_t t, std::int64_t distance,
                    std::int64_t halo, bool has_before) {
  if (t - distance >= documents.begin(t)) return {t - distance, -1};
  if (!has_before || !documents.first_of_row(t)) return {};
  const std::int64_t row = documents.row(t), back = distance - (t - row * batch.shape.length);
  if (back > documents.before(row)) return {};
  return {-1, row * halo + halo - back};
}

Tensor halo_rows(const Tensor& before) {
  return before ? before.reshape({before.size(0) * before.size(1), before.size(2)}) : Tensor();
}

}  // namespace

Costs ToyShift::costs(std::int64_t, Widths in) const {
  return {4.0 * static_cast<double>(in[0]), 8.0 * static_cast<double>(in[0])};
}

void ToyShift::forward_after(const Pass& pass, Tensors in, const Tensor& before, Tensors out, Tensors) const {
  if (pass.execution.plans()) return;
  dispatch(in[0], [&]<class T>(T) {
    const Documents documents(pass.micro_batch);
    const Matrix<T> x(in[0]), mix(in[1].reshape({2, in[0].size(1)})), y(out[0]);
    const Tensor halo_tensor = halo_rows(before);
    for (std::int64_t t = 0; t < x.rows; ++t)
      for (std::int64_t c = 0; c < x.columns; ++c) {
        T sum = x(t, c);
        for (std::int64_t k = 1; k <= halo(); ++k) {
          const Neighbour other = neighbour(documents, pass.micro_batch, t, k, halo(), !before.is_null());
          if (other.token >= 0) sum += mix(k - 1, c) * x(other.token, c);
          if (other.halo_row >= 0) sum += mix(k - 1, c) * at<T>(halo_tensor, other.halo_row, c);
        }
        y(t, c) = sum;
      }
  });
}

void ToyShift::backward_after(const Pass& pass, const BackwardTensors& tensors, const Tensor& before,
                              const Tensor& d_before) const {
  if (pass.execution.plans()) return;
  dispatch(tensors.in[0], [&]<class T>(T) {
    const Documents documents(pass.micro_batch);
    const Shape two_rows{2, tensors.in[0].size(1)};
    const Matrix<T> x(tensors.in[0]), mix(tensors.in[1].reshape(two_rows)), d(tensors.d_out[0]), d_x(tensors.d_in[0]),
        d_mix(tensors.d_in[1].reshape(two_rows));
    const Tensor halo_tensor = halo_rows(before), d_halo_tensor = halo_rows(d_before);
    if (d_before) fill_zero(pass.execution, d_before);
    for (std::int64_t t = 0; t < x.rows; ++t)
      for (std::int64_t c = 0; c < x.columns; ++c) d_x(t, c) = d(t, c);
    for (std::int64_t t = 0; t < x.rows; ++t)
      for (std::int64_t k = 1; k <= halo(); ++k) {
        const Neighbour other = neighbour(documents, pass.micro_batch, t, k, halo(), !before.is_null());
        for (std::int64_t c = 0; c < x.columns; ++c) {
          if (other.token >= 0) {
            d_mix(k - 1, c) += d(t, c) * x(other.token, c);
            d_x(other.token, c) += d(t, c) * mix(k - 1, c);
          }
          if (other.halo_row >= 0) {
            d_mix(k - 1, c) += d(t, c) * at<T>(halo_tensor, other.halo_row, c);
            if (d_before) at<T>(d_halo_tensor, other.halo_row, c) += d(t, c) * mix(k - 1, c);
          }
        }
      }
  });
  forward_after(pass, tensors.in, before, tensors.out, {});
}

Costs ToyRunningSum::costs(std::int64_t, Widths in) const {
  return {static_cast<double>(in[0]), static_cast<double>(in[0])};
}

void ToyRunningSum::summarise(const Pass& pass, Tensors in, const Tensor& state, Tensors) const {
  if (pass.execution.plans()) return;
  fill_zero(pass.execution, state);
  dispatch(in[0], [&]<class T>(T) {
    const Documents documents(pass.micro_batch);
    const Matrix<T> x(in[0]), sum(state);
    for (std::int64_t t = 0; t < x.rows; ++t)
      for (std::int64_t c = 0; c < x.columns && documents.last_of_row(t); ++c) sum(documents.row(t), c) += x(t, c);
  });
}

void ToyRunningSum::combine(const Pass& pass, Tensors, const SliceTable& table, SliceSide side, const Tensor& reach,
                            const Tensor& out) const {
  if (pass.execution.plans()) return;
  fill_zero(pass.execution, out);
  const auto* const bounds = table.bounds.as<std::int64_t>();
  const int slices = static_cast<int>(table.states.size(0));
  dispatch(out, [&]<class T>(T) {
    const Matrix<T> sum(out);
    for (int slice = 0; slice < slices; ++slice) {
      const bool counts = side == SliceSide::before ? slice < table.slice : slice > table.slice;
      const std::int64_t distance =
          side == SliceSide::before ? bounds[table.slice] - bounds[slice + 1] : bounds[slice] - bounds[table.slice + 1];
      const Matrix<T> state(table.states.select(0, slice));
      for (std::int64_t row = 0; row < sum.rows && counts; ++row)
        for (std::int64_t c = 0; c < sum.columns && distance < reach.as<std::int64_t>()[row]; ++c)
          sum(row, c) += state(row, c);
    }
  });
}

void ToyRunningSum::forward_from(const Pass& pass, Tensors in, const Tensor& initial, bool, Tensors out,
                                 Tensors) const {
  if (pass.execution.plans()) return;
  dispatch(in[0], [&]<class T>(T) {
    const Documents documents(pass.micro_batch);
    const Matrix<T> x(in[0]), y(out[0]);
    for (std::int64_t t = 0; t < x.rows; ++t)
      for (std::int64_t c = 0; c < x.columns; ++c) y(t, c) = x(t, c) + (t > documents.begin(t) ? y(t - 1, c) : T{0});
  });
  if (initial) add_initial_state(pass, in, initial, out);
}

void ToyRunningSum::add_initial_state(const Pass& pass, Tensors in, const Tensor& initial, Tensors out) const {
  if (pass.execution.plans()) return;
  dispatch(in[0], [&]<class T>(T) {
    const Documents documents(pass.micro_batch);
    const Matrix<T> state(initial), y(out[0]);
    for (std::int64_t t = 0; t < y.rows; ++t)
      for (std::int64_t c = 0; c < y.columns && documents.first_of_row(t); ++c) y(t, c) += state(documents.row(t), c);
  });
}

void ToyRunningSum::summarise_gradient(const Pass& pass, const BackwardTensors& tensors, const Tensor&,
                                       const Tensor& d_initial, Tensors) const {
  if (pass.execution.plans()) return;
  fill_zero(pass.execution, d_initial);
  dispatch(d_initial, [&]<class T>(T) {
    const Documents documents(pass.micro_batch);
    const Matrix<T> d(tensors.d_out[0]), sum(d_initial);
    for (std::int64_t t = 0; t < d.rows; ++t)
      for (std::int64_t c = 0; c < d.columns && documents.first_of_row(t); ++c) sum(documents.row(t), c) += d(t, c);
  });
}

void ToyRunningSum::backward_to(const Pass& pass, const BackwardTensors& tensors, const Tensor& initial,
                                const Tensor& d_final, Tensors) const {
  if (pass.execution.plans()) return;
  dispatch(tensors.in[0], [&]<class T>(T) {
    const Documents documents(pass.micro_batch);
    const Matrix<T> d(tensors.d_out[0]), d_x(tensors.d_in[0]);
    for (std::int64_t t = d.rows - 1; t >= 0; --t)
      for (std::int64_t c = 0; c < d.columns; ++c)
        d_x(t, c) = d(t, c) + (t + 1 < d.rows && documents.begin(t + 1) == documents.begin(t) ? d_x(t + 1, c) : T{0});
  });
  if (d_final) add_final_state_gradient(pass, tensors, initial, d_final);
}

void ToyRunningSum::add_final_state_gradient(const Pass& pass, const BackwardTensors& tensors, const Tensor&,
                                             const Tensor& d_final) const {
  if (pass.execution.plans()) return;
  dispatch(tensors.in[0], [&]<class T>(T) {
    const Documents documents(pass.micro_batch);
    const Matrix<T> d_x(tensors.d_in[0]), d_state(d_final);
    for (std::int64_t t = 0; t < d_x.rows; ++t)
      for (std::int64_t c = 0; c < d_x.columns && documents.last_of_row(t); ++c)
        d_x(t, c) += d_state(documents.row(t), c);
  });
}

void ToyRunningSum::step(const Pass& pass, Tensors in, Tensors out, Tensors, Tensors states) const {
  if (pass.execution.plans()) return;
  dispatch(in[0], [&]<class T>(T) {
    const Matrix<T> x(in[0]), y(out[0]);
    for (std::int64_t row = 0; row < x.rows; ++row) {
      const std::int64_t position = pass.micro_batch.positions.as<std::int64_t>()[row];
      const Matrix<T> tokens(states[0].select(0, row));
      for (std::int64_t c = 0; c < x.columns; ++c) {
        tokens(position, c) = x(row, c);
        y(row, c) = T{0};
        for (std::int64_t t = 0; t <= position; ++t) y(row, c) += tokens(t, c);
      }
    }
  });
}

Costs ToyAdd::costs(std::int64_t, Widths in) const { return {static_cast<double>(in[0]), 0.0}; }

void ToyAdd::forward(const Pass& pass, Tensors in, Tensors out, Tensors) const {
  if (pass.execution.plans()) return;
  dispatch(in[0], [&]<class T>(T) {
    const Matrix<T> a(in[0]), b(in[1]), y(out[0]);
    for (std::int64_t t = 0; t < y.rows; ++t)
      for (std::int64_t c = 0; c < y.columns; ++c) y(t, c) = a(t, c) + b(t, c);
  });
}

void ToyAdd::backward(const Pass& pass, const BackwardTensors& tensors) const {
  if (pass.execution.plans()) return;
  for (const Tensor& d_in : tensors.d_in) copy(pass.execution, tensors.d_out[0], d_in);
}

Costs ToySoftmax::costs(std::int64_t, Widths in) const {
  return {3.0 * static_cast<double>(in[0]), 4.0 * static_cast<double>(in[0])};
}

void ToySoftmax::forward(const Pass& pass, Tensors in, Tensors out, Tensors) const {
  if (pass.execution.plans()) return;
  dispatch(in[0], [&]<class T>(T) {
    const Matrix<T> x(in[0]), p(out[0]);
    for (std::int64_t t = 0; t < x.rows; ++t) {
      T sum{0};
      for (std::int64_t c = 0; c < x.columns; ++c) sum += p(t, c) = std::exp(x(t, c));
      for (std::int64_t c = 0; c < x.columns; ++c) p(t, c) /= sum;
    }
  });
}

void ToySoftmax::backward(const Pass& pass, const BackwardTensors& tensors) const {
  if (pass.execution.plans()) return;
  dispatch(tensors.in[0], [&]<class T>(T) {
    const Matrix<T> p(tensors.out[0]), d(tensors.d_out[0]), d_x(tensors.d_in[0]);
    for (std::int64_t t = 0; t < p.rows; ++t) {
      T dot{0};
      for (std::int64_t c = 0; c < p.columns; ++c) dot += p(t, c) * d(t, c);
      for (std::int64_t c = 0; c < p.columns; ++c) d_x(t, c) = p(t, c) * (d(t, c) - dot);
    }
  });
}

Costs ToyExperts::costs(std::int64_t, Widths in) const {
  const double forward = 2.0 * static_cast<double>(in[2] + in[3]);
  return {forward, 2.0 * forward};
}

namespace {

// An item of a stack as it lies here.
template <class T>
Matrix<T> item_of(const Tensor& stack, IndexRange owned, std::int64_t item) {
  const std::int64_t rows = stack.size(0) / owned.size();
  return Matrix<T>(stack.slice(0, (item - owned.begin) * rows, (item - owned.begin + 1) * rows));
}

}  // namespace

void ToyExperts::forward_owned(const Execution& execution, IndexRange owned, Tensors in, Tensors out) const {
  if (execution.plans()) return;
  if (!out[0]) return;
  fill_zero(execution, out[0]);
  dispatch(in[0], [&]<class T>(T) {
    const Matrix<T> x(in[0]), p(in[1]), y(out[0]);
    for (std::int64_t item = owned.begin; item < owned.end; ++item) {
      const Matrix<T> a = item_of<T>(in[2], owned, item), b = item_of<T>(in[3], owned, item);
      for (std::int64_t t = 0; t < x.rows; ++t)
        for (std::int64_t i = 0; i < a.rows; ++i) {
          T inner{0};
          for (std::int64_t c = 0; c < x.columns; ++c) inner += a(i, c) * x(t, c);
          for (std::int64_t c = 0; c < y.columns; ++c) y(t, c) += p(t, item) * b(c, i) * inner;
        }
    }
  });
}

void ToyExperts::backward_owned(const Execution& execution, IndexRange owned, const BackwardTensors& tensors) const {
  if (execution.plans()) return;
  fill_zero(execution, tensors.d_in[0]);
  fill_zero(execution, tensors.d_in[1]);
  dispatch(tensors.in[0], [&]<class T>(T) {
    const Matrix<T> x(tensors.in[0]), p(tensors.in[1]), d(tensors.d_out[0]), d_x(tensors.d_in[0]), d_p(tensors.d_in[1]);
    for (std::int64_t item = owned.begin; item < owned.end; ++item) {
      const Matrix<T> a = item_of<T>(tensors.in[2], owned, item), b = item_of<T>(tensors.in[3], owned, item);
      const Matrix<T> d_a = item_of<T>(tensors.d_in[2], owned, item), d_b = item_of<T>(tensors.d_in[3], owned, item);
      for (std::int64_t t = 0; t < x.rows; ++t)
        for (std::int64_t i = 0; i < a.rows; ++i) {
          T inner{0}, back{0};
          for (std::int64_t c = 0; c < x.columns; ++c) inner += a(i, c) * x(t, c);
          for (std::int64_t c = 0; c < d.columns; ++c) back += b(c, i) * d(t, c);
          d_p(t, item) += inner * back;
          for (std::int64_t c = 0; c < x.columns; ++c) {
            d_b(c, i) += p(t, item) * d(t, c) * inner;
            d_a(i, c) += p(t, item) * back * x(t, c);
            d_x(t, c) += p(t, item) * back * a(i, c);
          }
        }
    }
  });
}

void ToyBalance::summarise(const Pass& pass, Tensors in, const Tensor& sums) const {
  if (pass.execution.plans()) return;
  fill_zero(pass.execution, sums);
  dispatch(in[0], [&]<class T>(T) {
    const Matrix<T> p(in[0]);
    const Matrix<double> sum(sums);
    for (std::int64_t t = 0; t < p.rows; ++t) {
      const std::int64_t row = t / pass.micro_batch.shape.length;
      for (std::int64_t c = 0; c < p.columns; ++c) sum(row, c) += static_cast<double>(p(t, c));
      sum(row, p.columns) += 1.0;
    }
  });
}

void ToyBalance::add_loss(const Pass& pass, const Tensor& sums, double scale, const Tensor& loss) const {
  if (pass.execution.plans()) return;
  const Matrix<double> sum(sums);
  const std::int64_t columns = sum.columns - 1;
  for (std::int64_t row = 0; row < sum.rows; ++row)
    for (std::int64_t c = 0; c < columns; ++c) {
      const double mean = sum(row, c) / sum(row, columns);
      *loss.as<double>() += scale * static_cast<double>(columns) * mean * mean;
    }
}

void ToyBalance::backward(const Pass& pass, Tensors in, const Tensor& sums, double scale, Tensors d_in) const {
  if (pass.execution.plans()) return;
  dispatch(in[0], [&]<class T>(T) {
    const Matrix<double> sum(sums);
    const Matrix<T> d_p(d_in[0]);
    for (std::int64_t t = 0; t < d_p.rows; ++t) {
      const std::int64_t row = t / pass.micro_batch.shape.length;
      const double tokens = sum(row, d_p.columns);
      for (std::int64_t c = 0; c < d_p.columns; ++c)
        d_p(t, c) = static_cast<T>(scale * static_cast<double>(d_p.columns) * 2.0 * sum(row, c) / (tokens * tokens));
    }
  });
}

}  // namespace fulmen
