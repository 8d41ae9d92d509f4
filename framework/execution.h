// The means of a kernel: the device, a stream, and scratch memory that costs no allocation.
#pragma once

#include <cstddef>
#include <vector>

#include "framework/memory.h"
#include "framework/profiler.h"
#include "framework/tensor.h"

namespace fulmen {

// Scratch memory handed out in stack order. It grows, a block at a time, while the first step finds out what is needed.
// Once all is given back, the blocks become one block. It holds the most that was ever out at once. Afterwards it
// allocates nothing (`blocks()` stays constant; a test watches it).
class Arena {
 public:
  Arena(Device device, MemoryKind kind, MemoryLedger& ledger) : device_(device), kind_(kind), ledger_(&ledger) {}

  // A contiguous tensor, its contents undefined, valid until the enclosing Frame ends.
  Tensor take(DType dtype, const Shape& shape);

  // Everything taken while a Frame lives is given back when it ends. Frames nest.
  class Frame {
   public:
    explicit Frame(Arena& arena) : arena_(&arena), block_(arena.block_), used_(arena.used_), taken_(arena.taken_) {}
    ~Frame() { arena_->block_ = block_, arena_->used_ = used_, arena_->taken_ = taken_; }
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;

   private:
    Arena* arena_;
    std::size_t block_, used_, taken_;
  };

  std::size_t blocks() const { return blocks_.size(); }

 private:
  Device device_;
  MemoryKind kind_;
  MemoryLedger* ledger_;
  std::vector<Buffer> blocks_;
  std::size_t block_ = 0;  // the block in use
  std::size_t used_ = 0;   // bytes of it handed out
  std::size_t taken_ = 0;  // bytes handed out of all blocks
  std::size_t most_ = 0;   // that were ever
};

// Passed to every kernel. A cheap value: the arena and the ledger belong to the run.
struct Execution {
  Device device;
  Stream stream;
  Arena* scratch = nullptr;
  MemoryLedger* ledger = nullptr;
  bool deterministic = false;
  int multiprocessors_left = 0;  // of a GPU, that matrix products leave to concurrent communication
  Profiler* profiler = nullptr;  // where kernels report their time; null for nowhere

  // Whether memory is counted alone (framework/memory.h): no tensor's elements may be touched.
  bool plans() const { return ledger != nullptr && ledger->plans(); }
};

// The objects that an Execution points to, for the life of a run. Not movable: executions refer to it.
class ExecutionResources {
 public:
  // Throws UserError when the device is not to be had. On a GPU it makes a stream of its own.
  explicit ExecutionResources(Device device, bool deterministic = false);
  // For planning (MemoryLedger): of a device that need not be there, and without a stream of its own.
  static constexpr struct Planning {
  } planning{};
  ExecutionResources(Planning, Device device);
  ~ExecutionResources();
  ExecutionResources(const ExecutionResources&) = delete;
  ExecutionResources& operator=(const ExecutionResources&) = delete;

  const Execution& execution() const { return execution_; }
  // Executions handed out from now on report to it; it must outlive them.
  void set_profiler(Profiler* profiler) { execution_.profiler = profiler; }
  MemoryLedger& ledger() { return ledger_; }

 private:
  MemoryLedger ledger_;
  Arena scratch_;
  Execution execution_;
};

}  // namespace fulmen
