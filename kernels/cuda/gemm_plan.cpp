// Descriptors, heuristics and measurements of cuBLASLt. Its matrices are column-major, where a row-major matrix is its
// own transpose. So it is asked for c^T = op(b)^T op(a)^T, and b is its first operand.
#include "kernels/cuda/gemm_plan.h"

#include <algorithm>
#include <limits>
#include <map>
#include <mutex>
#include <vector>

#include "framework/cuda_check.h"
#include "framework/gpu.h"

namespace fulmen::cuda {
namespace {

// Below this number of operations the first candidate is within what a measurement could tell apart.
constexpr double least_operations_to_measure = 1e7;
// From this number on, a few per cent are worth trying many candidates: cuBLASLt's model is not that exact.
constexpr double large_operations = 1e10;
constexpr int few_candidates = 8, many_candidates = 32;
// As many as are measured again, more exactly, after a first trial of all.
constexpr std::size_t finalists = 6;
// The least gain of a candidate over its predecessor in the ranking.
constexpr double clearly_faster = 0.99;

void check(cublasStatus_t status, const char* what, const GemmKind& kind) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw InternalError(fmt::format("{} for {}: {}", what, kind.describe(), cublasLtGetStatusString(status)));
}

// Making a handle allocates and synchronises, so that there is one per device for the life of the process. It is never
// destroyed: at exit the driver may be gone before it.
cublasLtHandle_t handle_of(const GemmKind& kind) {
  static std::mutex mutex;
  static auto& handles = *new std::map<int, cublasLtHandle_t>;
  const std::lock_guard lock(mutex);
  cublasLtHandle_t& handle = handles[kind.device];
  if (handle == nullptr) {
    FULMEN_CUDA_CHECK(cudaSetDevice(kind.device));
    check(cublasLtCreate(&handle), "cublasLtCreate", kind);
  }
  return handle;
}

cudaDataType_t cuda_type(DType dtype, const GemmKind& kind) {
  switch (dtype) {
    case DType::fp64: return CUDA_R_64F;
    case DType::fp32: return CUDA_R_32F;
    case DType::bf16: return CUDA_R_16BF;
    default: throw InternalError("a GPU computes no " + kind.describe());
  }
}

cublasLtMatrixLayout_t make_layout(DType dtype, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                                   const GemmKind& kind) {
  cublasLtMatrixLayout_t layout = nullptr;
  check(cublasLtMatrixLayoutCreate(&layout, cuda_type(dtype, kind), static_cast<std::uint64_t>(columns),
                                   static_cast<std::uint64_t>(rows), stride),
        "cublasLtMatrixLayoutCreate", kind);
  return layout;
}

// The proposals of cuBLASLt, best first by its own model.
std::vector<cublasLtMatmulHeuristicResult_t> candidates(const GemmKind& kind, cublasLtMatmulDesc_t description,
                                                        cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                        cublasLtMatrixLayout_t c) {
  cublasLtMatmulPreference_t preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate", kind);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
          "cublasLtMatmulPreferenceSetAttribute", kind);
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(gemm_workspace_bytes));
  // Parts of a sum over k are added in the accumulation dtype, never in bf16.
  std::uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  if (kind.out != DType::bf16) reductions |= CUBLASLT_REDUCTION_SCHEME_INPLACE;
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, kind.b_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, kind.a_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, kind.c_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, kind.c_alignment);
  const int most_candidates = kind.operations() < large_operations ? few_candidates : many_candidates;
  std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<std::size_t>(most_candidates));
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle_of(kind), description, b, a, c, c, preference,
                                                               most_candidates, results.data(), &found);
  cublasLtMatmulPreferenceDestroy(preference);
  check(status, "no algorithm of cuBLASLt", kind);
  results.resize(static_cast<std::size_t>(found));
  std::erase_if(results, [](const auto& result) { return result.state != CUBLAS_STATUS_SUCCESS; });
  if (results.empty()) throw InternalError("no algorithm of cuBLASLt for " + kind.describe());
  return results;
}

bool is_captured(Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  FULMEN_CUDA_CHECK(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream.handle), &status));
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace

double GemmKind::operations() const {
  return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
}

std::string GemmKind::describe() const {
  return fmt::format(
      "{} product [{}, {}]{} x [{}, {}]{}{} {} [{}, {}], row strides {}, {} and {}, aligned to {}, {} and {} bytes",
      name_of(in), transpose_a ? k : m, transpose_a ? m : k, transpose_a ? "^T" : "", transpose_b ? n : k,
      transpose_b ? k : n, transpose_b ? "^T" : "", accumulate ? " added to" : " into", name_of(out), m, n, a_stride,
      b_stride, c_stride, a_alignment, b_alignment, c_alignment);
}

GemmPlan::GemmPlan(const GemmKind& kind) : kind_(kind) {
  const bool fp64 = kind.in == DType::fp64;
  // CUBLAS_COMPUTE_32F rounds no fp32 factor to TF32.
  check(cublasLtMatmulDescCreate(&description_, fp64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                                 fp64 ? CUDA_R_64F : CUDA_R_32F),
        "cublasLtMatmulDescCreate", kind);
  const auto set_operation = [&](cublasLtMatmulDescAttributes_t attribute, bool transpose) {
    const cublasOperation_t operation = transpose ? CUBLAS_OP_T : CUBLAS_OP_N;
    check(cublasLtMatmulDescSetAttribute(description_, attribute, &operation, sizeof operation),
          "cublasLtMatmulDescSetAttribute", kind);
  };
  set_operation(CUBLASLT_MATMUL_DESC_TRANSA, kind.transpose_b);
  set_operation(CUBLASLT_MATMUL_DESC_TRANSB, kind.transpose_a);
  if (kind.multiprocessors_left > 0) {
    const std::int32_t target = gpu::properties(kind.device).multiprocessors - kind.multiprocessors_left;
    FULMEN_CHECK(target > 0, "{} multiprocessors left of a product", kind.multiprocessors_left);
    check(cublasLtMatmulDescSetAttribute(description_, CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, &target, sizeof target),
          "cublasLtMatmulDescSetAttribute", kind);
  }
  a_layout_ =
      make_layout(kind.in, kind.transpose_a ? kind.k : kind.m, kind.transpose_a ? kind.m : kind.k, kind.a_stride, kind);
  b_layout_ =
      make_layout(kind.in, kind.transpose_b ? kind.n : kind.k, kind.transpose_b ? kind.k : kind.n, kind.b_stride, kind);
  c_layout_ = make_layout(kind.out, kind.m, kind.n, kind.c_stride, kind);
}

GemmPlan::~GemmPlan() {
  for (const cublasLtMatrixLayout_t layout : {a_layout_, b_layout_, c_layout_})
    if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
  if (description_ != nullptr) cublasLtMatmulDescDestroy(description_);
}

cublasStatus_t GemmPlan::launch(const Execution& execution, const GemmOperands& operands, void* sum,
                                const cublasLtMatmulAlgo_t& algorithm, void* workspace) const {
  const auto call = [&](auto alpha, auto beta) {
    return cublasLtMatmul(handle_of(kind_), description_, &alpha, operands.b, b_layout_, operands.a, a_layout_, &beta,
                          operands.c, c_layout_, sum, c_layout_, &algorithm, workspace,
                          static_cast<std::size_t>(gemm_workspace_bytes),
                          static_cast<cudaStream_t>(execution.stream.handle));
  };
  const double beta = kind_.accumulate ? 1.0 : 0.0;
  return kind_.in == DType::fp64 ? call(operands.alpha, beta)
                                 : call(static_cast<float>(operands.alpha), static_cast<float>(beta));
}

void GemmPlan::run(const Execution& execution, const GemmOperands& operands, void* workspace) const {
  check(launch(execution, operands, operands.c, algorithm_, workspace), "cublasLtMatmul", kind_);
}

void GemmPlan::choose(const Execution& execution, const GemmOperands& operands, void* workspace) {
  FULMEN_CUDA_CHECK(cudaSetDevice(kind_.device));
  const auto proposed = candidates(kind_, description_, a_layout_, b_layout_, c_layout_);
  algorithm_ = proposed.front().algo;
  if (kind_.deterministic || proposed.size() == 1 || kind_.operations() < least_operations_to_measure ||
      is_captured(execution.stream))
    return;
  // A sum that is added to goes elsewhere while the candidates are measured, into memory that is given back afterwards.
  // Without room for that the first candidate stands.
  Buffer elsewhere;
  void* sum = operands.c;
  if (kind_.accumulate) {
    const std::size_t bytes = static_cast<std::size_t>((kind_.m - 1) * kind_.c_stride + kind_.n) * size_of(kind_.out);
    if (gpu::memory_use(kind_.device).free_bytes < 2 * bytes) return;
    elsewhere = Buffer(execution.device, bytes, MemoryKind::workspace, *execution.ledger);
    sum = elsewhere.data();
  }
  gpu::Event start(execution.device, true), end(execution.device, true);
  // Seconds for each call, infinite for a refused algorithm.
  const auto measure = [&](std::size_t i, int repeats) {
    const auto once = [&] {
      return launch(execution, operands, sum, proposed[i].algo, workspace) == CUBLAS_STATUS_SUCCESS;
    };
    if (!once()) return std::numeric_limits<double>::infinity();  // warm: its first use loads it
    start.record(execution.stream);
    bool launched = true;
    for (int repeat = 0; repeat < repeats; ++repeat) launched = once() && launched;
    end.record(execution.stream);
    end.synchronize();
    return launched ? end.seconds_since(start) / repeats : std::numeric_limits<double>::infinity();
  };
  const bool large = kind_.operations() >= large_operations;
  std::vector<double> seconds(proposed.size());
  std::vector<std::size_t> order(proposed.size());
  for (std::size_t i = 0; i < proposed.size(); ++i) {
    order[i] = i;
    seconds[i] = measure(i, large ? 1 : 20);
  }
  std::ranges::stable_sort(order, {}, [&](std::size_t i) { return seconds[i]; });
  order.resize(std::min(order.size(), finalists));
  std::ranges::sort(order);  // as cuBLASLt ranks them again
  for (const std::size_t i : order) seconds[i] = std::numeric_limits<double>::infinity();
  for (int round = 0; round < 3; ++round)
    for (const std::size_t i : order) seconds[i] = std::min(seconds[i], measure(i, large ? 3 : 20));
  std::size_t best = order.front();
  for (const std::size_t i : order)
    if (seconds[i] < clearly_faster * seconds[best]) best = i;
  algorithm_ = proposed[best].algo;
}

bool GemmPlan::choose_as(const GemmPlan& other) {
  cublasLtMatmulHeuristicResult_t result{};
  const cublasStatus_t status = cublasLtMatmulAlgoCheck(handle_of(kind_), description_, b_layout_, a_layout_, c_layout_,
                                                        c_layout_, &other.algorithm_, &result);
  const bool usable = status == CUBLAS_STATUS_SUCCESS && result.state == CUBLAS_STATUS_SUCCESS &&
                      result.workspaceSize <= static_cast<std::size_t>(gemm_workspace_bytes);
  if (usable) algorithm_ = other.algorithm_;
  return usable;
}

const GemmPlan& gemm_plan(const Execution& execution, const GemmKind& kind, const GemmOperands& operands,
                          void* workspace) {
  static std::mutex mutex;
  static auto& plans = *new std::map<GemmKind, GemmPlan>;  // never destroyed, as the handles
  const std::lock_guard lock(mutex);
  const auto known = plans.find(kind);
  if (known != plans.end()) return known->second;
  GemmPlan& plan = plans.try_emplace(kind, kind).first->second;
  // The best algorithm for a product alone also serves for adding it, which is harder to measure.
  GemmKind writing = kind;
  writing.accumulate = false;
  try {
    const auto alone = plans.find(writing);
    const bool follows =
        kind.accumulate && !kind.deterministic && alone != plans.end() && plan.choose_as(alone->second);
    if (!follows) plan.choose(execution, operands, workspace);
  } catch (...) {
    plans.erase(kind);  // the next use must choose, too
    throw;
  }
  return plan;
}

}  // namespace fulmen::cuda
