// The CUDA runtime as the rest of Fulmen sees it: device memory, streams, events and copies. Without CUDA in the build
// the same functions exist: device_count() is 0, unavailable_reason() says why, and everything else throws UserError.
#pragma once

#include <cstddef>
#include <string>

#include "framework/device.h"

namespace fulmen::gpu {

#ifdef FULMEN_CUDA
inline constexpr bool built = true;
#else
inline constexpr bool built = false;
#endif

// GPUs that this process can use. 0 without a driver, without a GPU or without CUDA in the build; never throws.
int device_count();
// Empty when there is a GPU to use; else what is missing and what to do, for messages.
std::string unavailable_reason();
// Throws UserError naming run.device unless `device` can be used.
void require(Device device);

// Makes it the calling thread's: a thread of its own begins with GPU 0, and would open it.
void make_current(Device device);

struct Properties {
  std::string name;
  std::string uuid;          // 32 hexadecimal digits: the same GPU in any process, whatever its number there
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  std::size_t memory_bytes = 0;
  int driver_version = 0, runtime_version = 0;  // as CUDA numbers them: 13000 is 13.0
};
Properties properties(int device);
// Whether it computes in fp64 at half the speed of fp32 at least, as the cards of data centres do.
bool fast_in_double_precision(int device);

struct MemoryUse {
  std::size_t free_bytes = 0, total_bytes = 0;
};
MemoryUse memory_use(int device);

// Zeroed device memory, aligned to 256 bytes; nullptr when it is not to be had.
void* allocate(int device, std::size_t bytes);
void release(int device, void* data) noexcept;
// Page-locked host memory, which copies reach without staging; throws when it is not to be had.
void* allocate_pinned(std::size_t bytes);
void release_pinned(void* data) noexcept;

// A stream that does not synchronise with the default stream.
Stream create_stream(Device device);
// A stream of the highest priority: its kernels go before waiting kernels of other streams.
Stream create_urgent_stream(Device device);
void destroy_stream(Stream stream) noexcept;
void synchronize(Stream stream);

// Copies in stream order; either side may be host or device memory. From pageable host memory the source may be reused
// when the call returns.
void copy(Stream stream, void* to, const void* from, std::size_t bytes);
// `rows` rows of `row_bytes`, whose starts lie the pitches apart.
void copy_rows(Stream stream, void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
               std::size_t row_bytes, std::size_t rows);

// A mark in a stream: other streams can wait for it, and the time between two can be read.
class Event {
 public:
  Event() = default;  // none
  explicit Event(Device device, bool timed = false);
  Event(Event&& other) noexcept;
  Event& operator=(Event&& other) noexcept;
  ~Event();

  void record(Stream stream);
  void wait(Stream stream) const;  // the stream waits
  void synchronize() const;        // the caller waits
  bool passed() const;
  // Seconds from `start` to this event; both passed and timed.
  double seconds_since(const Event& start) const;
  explicit operator bool() const { return handle_ != nullptr; }

 private:
  void* handle_ = nullptr;
};

}  // namespace fulmen::gpu
