// Batched products through cuBLAS. Its matrices are column-major, so that C^T = B^T A^T is what it is asked for.
#include "kernels/cuda/batched_product.h"

#include <algorithm>
#include <map>
#include <type_traits>

#include <cublas_v2.h>

#include "framework/cuda_check.h"

namespace fulmen::cuda {
namespace {

// The workspace that cuBLAS would allocate for itself on the largest cards.
constexpr std::int64_t workspace_bytes = std::int64_t{32} << 20;
// Products of one call: the third extent of a grid ends at 65535.
constexpr std::int64_t largest_batch = 32768;

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) throw InternalError(fmt::format("{}: {}", what, cublasGetStatusString(status)));
}

// Making a handle allocates and synchronises, so that there is one per device for the life of the process. It is never
// destroyed: at exit the driver may be gone before it.
struct SharedHandle {
  std::mutex in_use;
  cublasHandle_t handle = nullptr;
};

SharedHandle& shared_handle(int device) {
  static std::mutex mutex;
  static auto& handles = *new std::map<int, SharedHandle>;
  const std::lock_guard lock(mutex);
  SharedHandle& shared = handles[device];
  if (shared.handle != nullptr) return shared;
  FULMEN_CUDA_CHECK(cudaSetDevice(device));
  check(cublasCreate(&shared.handle), "cublasCreate");
  check(cublasSetMathMode(shared.handle, CUBLAS_PEDANTIC_MATH), "cublasSetMathMode");
  return shared;
}

}  // namespace

BatchedProducts::BatchedProducts(const Execution& execution) {
  SharedHandle& shared = shared_handle(execution.device.index);
  lock_ = std::unique_lock(shared.in_use);
  handle_ = shared.handle;
  // Setting the stream also takes the workspace away.
  check(cublasSetStream(shared.handle, static_cast<cudaStream_t>(execution.stream.handle)), "cublasSetStream");
  const Tensor workspace = execution.scratch->take(DType::uint8, {workspace_bytes});
  check(cublasSetWorkspace(shared.handle, workspace.data(), workspace_bytes), "cublasSetWorkspace");
}

template <class A>
void BatchedProducts::multiply(const BatchedMatrix<A>& a, const BatchedMatrix<A>& b, A* c, std::int64_t batch,
                               bool add) const {
  const int rows = a.transposed ? a.columns : a.rows, inner = a.transposed ? a.rows : a.columns;
  const int columns = b.transposed ? b.rows : b.columns;
  FULMEN_CHECK((b.transposed ? b.columns : b.rows) == inner, "a product over {} and {} elements", inner,
               b.transposed ? b.columns : b.rows);
  const auto elements = [](std::int64_t x, std::int64_t y) { return static_cast<long long>(x * y); };
  const long long a_stride = elements(a.rows, a.columns), b_stride = elements(b.rows, b.columns);
  const long long c_stride = elements(rows, columns);
  const A one = 1, before = add ? 1 : 0;
  for (std::int64_t first = 0; first < batch; first += largest_batch) {
    const auto run = [&](auto product) {
      check(product(static_cast<cublasHandle_t>(handle_), b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                    a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, columns, rows, inner, &one, b.data + first * b_stride,
                    b.columns, b_stride, a.data + first * a_stride, a.columns, a_stride, &before, c + first * c_stride,
                    columns, c_stride, static_cast<int>(std::min(largest_batch, batch - first))),
            "a batched product");
    };
    if constexpr (std::is_same_v<A, double>) {
      run(cublasDgemmStridedBatched);
    } else {
      run(cublasSgemmStridedBatched);
    }
  }
}

template void BatchedProducts::multiply(const BatchedMatrix<float>&, const BatchedMatrix<float>&, float*, std::int64_t,
                                        bool) const;
template void BatchedProducts::multiply(const BatchedMatrix<double>&, const BatchedMatrix<double>&, double*,
                                        std::int64_t, bool) const;

}  // namespace fulmen::cuda
