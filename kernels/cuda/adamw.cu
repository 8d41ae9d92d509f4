// AdamW on a GPU: one pass over parameters, gradients and moments. Values that change from step to step are read on the
// device.
#include "kernels/adamw.h"

#include "kernels/cuda/device_pass.cuh"
#include "kernels/cuda/device_vector.cuh"

namespace fulmen::cuda {
namespace {

// The coefficients of an element's update, in the parameters' type.
template <class T>
struct Coefficients {
  T clip_scale, decay, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, inverse_correction2, epsilon;
};

// Once per call, so that the many threads of the update do no fp64 division.
template <class T>
__global__ void coefficients_kernel(const double* scalars, AdamwOptions options, Coefficients<T>* coefficients) {
  const double learning_rate = scalars[0] * options.learning_rate_scale;
  *coefficients = {static_cast<T>(scalars[3]),
                   static_cast<T>(1.0 - learning_rate * options.weight_decay),
                   static_cast<T>(options.beta1),
                   static_cast<T>(1.0 - options.beta1),
                   static_cast<T>(options.beta2),
                   static_cast<T>(1.0 - options.beta2),
                   static_cast<T>(learning_rate / scalars[1]),
                   static_cast<T>(1.0 / scalars[2]),
                   static_cast<T>(options.epsilon)};
}

// T parameters and moments, G gradients, R the rounded parameters (or none).
template <class T, class G, class R>
struct Update {
  static constexpr int items = items_for(4);
  template <int length>
  struct Loaded {
    Packet<T, length> parameters, exp_avg, exp_avg_sq;
    Packet<G, length> gradients;
  };
  T* parameters;
  const G* gradients;
  T* exp_avg;
  T* exp_avg_sq;
  R* rounded;
  const Coefficients<T>* coefficients;

  template <int length>
  __device__ __forceinline__ Loaded<length> load(std::int64_t, std::int64_t i) const {
    return {load_packet<length>(parameters + i), load_packet<length>(exp_avg + i), load_packet<length>(exp_avg_sq + i),
            load_packet<length>(gradients + i)};
  }
  template <int length>
  __device__ __forceinline__ void finish(const Loaded<length>& loaded, std::int64_t, std::int64_t i) const {
    const Coefficients<T> c = *coefficients;
    Packet<T, length> p, m, v;
#pragma unroll
    for (int j = 0; j < length; ++j) {
      const T gradient = static_cast<T>(loaded.gradients.values[j]) * c.clip_scale;
      m.values[j] = c.beta1 * loaded.exp_avg.values[j] + c.one_minus_beta1 * gradient;
      v.values[j] = c.beta2 * loaded.exp_avg_sq.values[j] + c.one_minus_beta2 * (gradient * gradient);
      p.values[j] = loaded.parameters.values[j] * c.decay -
                    c.step_size * m.values[j] / (sqrt(v.values[j] * c.inverse_correction2) + c.epsilon);
    }
    store_packet(exp_avg + i, m);
    store_packet(exp_avg_sq + i, v);
    store_packet(parameters + i, p);
    if (rounded != nullptr) store_packet(rounded + i, make_packet<R, length>([&](int j) { return p.values[j]; }));
  }
};

template <class T, class G, class R>
void update(const Execution& execution, const Tensor& parameters, const Tensor& gradients, const Tensor& exp_avg,
            const Tensor& exp_avg_sq, const Tensor& scalars, const AdamwOptions& options, const Tensor& rounded) {
  constexpr int length = vector_length<float>;
  Arena::Frame frame(*execution.scratch);
  auto* const coefficients = static_cast<Coefficients<T>*>(
      execution.scratch->take(DType::uint8, {static_cast<std::int64_t>(sizeof(Coefficients<T>))}).data());
  coefficients_kernel<T><<<1, 1, 0, stream_of(execution)>>>(pointer_to<double>(scalars), options, coefficients);
  FULMEN_CUDA_CHECK_LAUNCH();
  const Update<T, G, R> operation{pointer_to<T>(parameters), pointer_to<G>(gradients), pointer_to<T>(exp_avg),
                                  pointer_to<T>(exp_avg_sq), pointer_to<R>(rounded),   coefficients};
  dispatch_length<length>(
      packets_aligned(length, {parameters, gradients, exp_avg, exp_avg_sq, rounded}),
      [&](auto elements) { launch_pass<elements.value>(execution, operation, 1, parameters.elements()); });
}

// Scalars [3] as the header has it; a norm that is not a number stays visible in the scale.
__global__ void clip_scale_kernel(const double* square_sum, double max_norm, double* norm, double* scalars) {
  const double value = sqrt(*square_sum);
  const double ratio = max_norm / (value + 1e-6);
  *norm = value;
  scalars[3] = max_norm == 0 || ratio > 1 ? 1.0 : ratio;
}

}  // namespace

void adamw_update(const Execution& execution, const Tensor& parameters, const Tensor& gradients, const Tensor& exp_avg,
                  const Tensor& exp_avg_sq, const Tensor& scalars, const AdamwOptions& options, const Tensor& rounded) {
  const DType p = parameters.dtype(), g = gradients.dtype(), r = rounded ? rounded.dtype() : DType::bf16;
  const auto run = [&]<class T, class G, class R>() {
    update<T, G, R>(execution, parameters, gradients, exp_avg, exp_avg_sq, scalars, options, rounded);
  };
  if (p == DType::fp32 && g == DType::fp32 && r == DType::bf16)
    return run.template operator()<float, float, __nv_bfloat16>();
  if (p == DType::fp32 && g == DType::fp64 && r == DType::bf16)
    return run.template operator()<float, double, __nv_bfloat16>();
  if (p == DType::fp64 && g == DType::fp64 && r == DType::bf16)
    return run.template operator()<double, double, __nv_bfloat16>();
  if (p == DType::fp64 && g == DType::fp64 && r == DType::fp32) return run.template operator()<double, double, float>();
  throw InternalError(fmt::format("no AdamW on a GPU for {} parameters, {} gradients, rounded to {}", name_of(p),
                                  name_of(g), name_of(r)));
}

void set_clip_scale(const Execution& execution, const Tensor& square_sum, double max_norm, const Tensor& norm,
                    const Tensor& scalars) {
  clip_scale_kernel<<<1, 1, 0, stream_of(execution)>>>(pointer_to<double>(square_sum), max_norm,
                                                       pointer_to<double>(norm), pointer_to<double>(scalars));
  FULMEN_CUDA_CHECK_LAUNCH();
}

}  // namespace fulmen::cuda
