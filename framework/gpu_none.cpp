// A build without CUDA: there is no GPU, and the message says what to do.
#include "framework/error.h"
#include "framework/gpu.h"

namespace fulmen::gpu {

namespace {
[[noreturn]] void refuse() {
  throw UserError("run.device", "this build has no CUDA support",
                  "set run.device to cpu, or build with cmake --preset cuda");
}
}  // namespace

int device_count() { return 0; }
std::string unavailable_reason() { return "this build has no CUDA support (build with cmake --preset cuda)"; }
void require(Device device) {
  if (device.kind != DeviceKind::cpu) refuse();
}
void make_current(Device device) { require(device); }
Properties properties(int) { refuse(); }
bool fast_in_double_precision(int) { refuse(); }
MemoryUse memory_use(int) { refuse(); }
void* allocate(int, std::size_t) { refuse(); }
void release(int, void*) noexcept {}
void* allocate_pinned(std::size_t) { refuse(); }
void release_pinned(void*) noexcept {}
Stream create_stream(Device) { refuse(); }
Stream create_urgent_stream(Device) { refuse(); }
void destroy_stream(Stream) noexcept {}
void synchronize(Stream) { refuse(); }
void copy(Stream, void*, const void*, std::size_t) { refuse(); }
void copy_rows(Stream, void*, std::size_t, const void*, std::size_t, std::size_t, std::size_t) { refuse(); }

Event::Event(Device, bool) { refuse(); }
Event::Event(Event&&) noexcept = default;
Event& Event::operator=(Event&&) noexcept = default;
Event::~Event() = default;
void Event::record(Stream) { refuse(); }
void Event::wait(Stream) const { refuse(); }
void Event::synchronize() const { refuse(); }
bool Event::passed() const { refuse(); }
double Event::seconds_since(const Event&) const { refuse(); }

}  // namespace fulmen::gpu
