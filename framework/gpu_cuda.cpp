// Device memory, streams and events through the CUDA runtime.
#include "framework/gpu.h"

#include <cstdlib>
#include <utility>

#include "framework/cuda_check.h"

namespace fulmen::gpu {

namespace {

cudaStream_t handle(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

// Before CUDA starts: as many queues on the GPU as it has. Streams that share a queue wait for each other, and where
// any of them waits for another rank that may be for ever.
void ask_for_queues() {
  static const bool asked = setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0) == 0;
  if (!asked) throw_system_error("cannot set CUDA_DEVICE_MAX_CONNECTIONS");
}

cudaError_t count_devices(int& count) {
  ask_for_queues();
  count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();  // not sticky: later calls start clean
    count = 0;
  }
  return status;
}

}  // namespace

int device_count() {
  int count = 0;
  count_devices(count);
  return count;
}

std::string unavailable_reason() {
  int count = 0;
  const cudaError_t status = count_devices(count);
  if (count > 0) return {};
  if (status == cudaErrorInsufficientDriver || status == cudaErrorStubLibrary)
    return "no CUDA driver, or one older than this build's CUDA (install or update the NVIDIA driver; nvidia-smi shows "
           "it)";
  if (status == cudaErrorNoDevice || status == cudaSuccess)
    return "no GPU is visible to this process (nvidia-smi lists them; CUDA_VISIBLE_DEVICES hides them)";
  return fmt::format("the CUDA driver reports: {}", cudaGetErrorString(status));
}

void require(Device device) {
  if (device.kind == DeviceKind::cpu) return;
  const std::string reason = unavailable_reason();
  if (!reason.empty())
    throw UserError("run.device: cuda", reason, "set run.device to cpu, or run where there is a GPU");
  if (device.index < 0 || device.index >= device_count())
    throw UserError("run.device: cuda",
                    fmt::format("GPU {} does not exist here, there are {}", device.index, device_count()),
                    "start no more ranks on a node than it has GPUs");
}

Properties properties(int device) {
  cudaDeviceProp raw{};
  FULMEN_CUDA_CHECK(cudaGetDeviceProperties(&raw, device));
  Properties result;
  result.name = raw.name;
  for (const char byte : raw.uuid.bytes) result.uuid += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  result.major = raw.major;
  result.minor = raw.minor;
  result.multiprocessors = raw.multiProcessorCount;
  result.memory_bytes = raw.totalGlobalMem;
  FULMEN_CUDA_CHECK(cudaDriverGetVersion(&result.driver_version));
  FULMEN_CUDA_CHECK(cudaRuntimeGetVersion(&result.runtime_version));
  return result;
}

bool fast_in_double_precision(int device) {
  int times_slower = 0;
  FULMEN_CUDA_CHECK(cudaDeviceGetAttribute(&times_slower, cudaDevAttrSingleToDoublePrecisionPerfRatio, device));
  return times_slower <= 2;
}

MemoryUse memory_use(int device) {
  FULMEN_CUDA_CHECK(cudaSetDevice(device));
  MemoryUse use;
  FULMEN_CUDA_CHECK(cudaMemGetInfo(&use.free_bytes, &use.total_bytes));
  return use;
}

void* allocate(int device, std::size_t bytes) {
  FULMEN_CUDA_CHECK(cudaSetDevice(device));
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  FULMEN_CUDA_CHECK(status);
  FULMEN_CUDA_CHECK(cudaMemset(data, 0, bytes));
  // Other streams do not wait for the default stream, on which this ran.
  FULMEN_CUDA_CHECK(cudaStreamSynchronize(nullptr));
  return data;
}

void release(int device, void* data) noexcept {
  cudaSetDevice(device);
  cudaFree(data);
}

void* allocate_pinned(std::size_t bytes) {
  void* data = nullptr;
  FULMEN_CUDA_CHECK(cudaHostAlloc(&data, bytes, cudaHostAllocPortable));
  return data;
}

void release_pinned(void* data) noexcept { cudaFreeHost(data); }

void make_current(Device device) { FULMEN_CUDA_CHECK(cudaSetDevice(device.index)); }

Stream create_stream(Device device) {
  require(device);
  FULMEN_CUDA_CHECK(cudaSetDevice(device.index));
  cudaStream_t stream = nullptr;
  FULMEN_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return {device, stream};
}

Stream create_urgent_stream(Device device) {
  require(device);
  FULMEN_CUDA_CHECK(cudaSetDevice(device.index));
  int lowest = 0, highest = 0;
  FULMEN_CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
  cudaStream_t stream = nullptr;
  FULMEN_CUDA_CHECK(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, highest));
  return {device, stream};
}

void destroy_stream(Stream stream) noexcept {
  if (stream.handle != nullptr) cudaStreamDestroy(handle(stream));
}

void synchronize(Stream stream) { FULMEN_CUDA_CHECK(cudaStreamSynchronize(handle(stream))); }

void copy(Stream stream, void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  FULMEN_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, handle(stream)));
}

void copy_rows(Stream stream, void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
               std::size_t row_bytes, std::size_t rows) {
  if (row_bytes == 0 || rows == 0) return;
  FULMEN_CUDA_CHECK(
      cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, row_bytes, rows, cudaMemcpyDefault, handle(stream)));
}

Event::Event(Device device, bool timed) {
  FULMEN_CUDA_CHECK(cudaSetDevice(device.index));
  cudaEvent_t event = nullptr;
  FULMEN_CUDA_CHECK(cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming));
  handle_ = event;
}

Event::Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}

Event& Event::operator=(Event&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}

Event::~Event() {
  if (handle_ != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(handle_));
}

void Event::record(Stream stream) {
  FULMEN_CUDA_CHECK(cudaEventRecord(static_cast<cudaEvent_t>(handle_), handle(stream)));
}
void Event::wait(Stream stream) const {
  FULMEN_CUDA_CHECK(cudaStreamWaitEvent(handle(stream), static_cast<cudaEvent_t>(handle_)));
}
void Event::synchronize() const { FULMEN_CUDA_CHECK(cudaEventSynchronize(static_cast<cudaEvent_t>(handle_))); }

bool Event::passed() const {
  const cudaError_t status = cudaEventQuery(static_cast<cudaEvent_t>(handle_));
  if (status == cudaErrorNotReady) return false;
  FULMEN_CUDA_CHECK(status);
  return true;
}

double Event::seconds_since(const Event& start) const {
  float milliseconds = 0.0f;
  FULMEN_CUDA_CHECK(
      cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(start.handle_), static_cast<cudaEvent_t>(handle_)));
  return 1e-3 * static_cast<double>(milliseconds);
}

}  // namespace fulmen::gpu
