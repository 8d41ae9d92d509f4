// The communicator, the device and the device memory of the tests of communicators.
#include "tests/parallel/test_communicator.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "framework/gpu.h"
#include "parallel/nccl_communicator.h"
#include "parallel/staged_communicator.h"
#include "tests/parallel/rank_groups.h"

namespace fulmen {
namespace {

// The choice of two that a variable of the environment makes; the first where it is not set.
std::string chosen(const char* variable, const char* usual, const char* other) {
  const char* const given = std::getenv(variable);
  const std::string name = given != nullptr ? given : usual;
  FULMEN_CHECK(name == usual || name == other, "{} is '{}', expected {} or {}", variable, name, usual, other);
  return name;
}

Device device_of_rank() {
  // A GPU for each rank, or GPU 0 for all.
  return Device::cuda(test_transport() == TestTransport::nccl ? test_world().rank() : 0);
}

std::unique_ptr<Communicator> on_transport(std::unique_ptr<Communicator> host) {
  switch (test_transport()) {
    case TestTransport::mpi: return host;
    case TestTransport::staged: return make_staged_communicator(std::move(host), test_execution().device);
    case TestTransport::nccl: return make_nccl_communicator(std::move(host), test_execution().device);
  }
  return nullptr;
}

// The objects of the device that last as long as the tests.
struct DeviceResources {
  explicit DeviceResources(Device device) : execution(device) {}
  ExecutionResources execution;
  std::multimap<std::size_t, Buffer> unused_memory;
  std::unique_ptr<Communicator> communicator;
};
std::unique_ptr<DeviceResources> resources;

std::string reason_to_skip() {
  std::string reason = gpu::unavailable_reason();
  if (reason.empty() && test_transport() == TestTransport::nccl && gpu::device_count() < test_world().size())
    reason = fmt::format("NCCL on {} ranks needs as many GPUs, there are {}", test_world().size(), gpu::device_count());
  const bool skipped = test_world().all_reduce(static_cast<std::int64_t>(!reason.empty()), ReduceOp::max) != 0;
  return skipped && reason.empty() ? "another rank has no GPU" : reason;
}

class TransportEnvironment final : public testing::Environment {
 public:
  void SetUp() override {
    if (test_transport() == TestTransport::mpi) return;
    const std::string reason = reason_to_skip();
    if (!reason.empty()) {
      // CTest looks for this line.
      if (test_world().rank() == 0) std::printf("No test was run, no GPU: %s\n", reason.c_str());
      GTEST_SKIP() << reason;
    }
    resources = std::make_unique<DeviceResources>(device_of_rank());
    resources->communicator = on_transport(test_world().subgroup(first_ranks(test_world().size())));
  }
  // Not later: then MPI and the CUDA runtime may be gone.
  void TearDown() override { resources.reset(); }
};
testing::Environment* const environment = testing::AddGlobalTestEnvironment(new TransportEnvironment);

}  // namespace

TestTransport test_transport() {
  static const TestTransport transport = [] {
    const bool on_gpu = chosen("FULMEN_TEST_DEVICE", "cpu", "cuda") == "cuda";
    const bool nccl = chosen("FULMEN_TEST_TRANSPORT", "host", "nccl") == "nccl";
    FULMEN_CHECK(on_gpu || !nccl, "FULMEN_TEST_TRANSPORT=nccl needs FULMEN_TEST_DEVICE=cuda");
    return !on_gpu ? TestTransport::mpi : nccl ? TestTransport::nccl : TestTransport::staged;
  }();
  return transport;
}

Communicator& test_communicator() { return resources ? *resources->communicator : test_world(); }

std::unique_ptr<Communicator> test_communicator_in_pieces(std::int64_t largest_count) {
  return on_transport(test_session().world(largest_count));
}

const Execution& test_execution() {
  static const Execution on_cpu;
  return resources ? resources->execution.execution() : on_cpu;
}

bool test_reduces(DType dtype) {
  if (dtype == DType::bf16) return test_transport() != TestTransport::mpi;
  if (dtype == DType::fp16) return test_transport() == TestTransport::nccl;
  return dtype != DType::uint16 || test_transport() != TestTransport::nccl;
}

Buffer take_test_memory(std::size_t bytes) {
  constexpr std::size_t least = 4096;
  const auto found = resources->unused_memory.lower_bound(bytes);
  if (found == resources->unused_memory.end())
    return Buffer(test_execution().device, std::max(bytes, least), MemoryKind::communication,
                  resources->execution.ledger());
  Buffer memory = std::move(found->second);
  resources->unused_memory.erase(found);
  return memory;
}

void give_back_test_memory(Buffer memory) {
  const std::size_t bytes = memory.bytes();
  resources->unused_memory.emplace(bytes, std::move(memory));
}

}  // namespace fulmen
