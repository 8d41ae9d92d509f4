// GPU tensors through page-locked host memory.
#include "parallel/staged_communicator.h"

#include <algorithm>
#include <utility>

#include "framework/bfloat16.h"
#include "framework/gpu.h"
#include "parallel/transfer_checks.h"

namespace fulmen {
namespace {

// Page-locked memory that grows and stays. One operation uses it at a time, each from its beginning.
class StagingMemory {
 public:
  explicit StagingMemory(Device device) : device_(device) {}
  ~StagingMemory() {
    if (data_ == nullptr) return;
    try {
      copied_back_.synchronize();
    } catch (const Error&) {
      // The device has failed, and with it the copies.
    }
    gpu::release_pinned(data_);
  }
  StagingMemory(const StagingMemory&) = delete;
  StagingMemory& operator=(const StagingMemory&) = delete;

  // At least `bytes`, of which nothing is under way any more.
  char* take(std::size_t bytes) {
    if (!copied_back_) {
      gpu::require(device_);
      copied_back_ = gpu::Event(device_);
    }
    copied_back_.synchronize();
    if (bytes > bytes_) grow(bytes);
    return data_;
  }

  // Marks that the copies out of it are in the stream.
  void copied_back(Stream stream) { copied_back_.record(stream); }

 private:
  void grow(std::size_t bytes) {
    if (data_ != nullptr) gpu::release_pinned(std::exchange(data_, nullptr));
    bytes_ = 0;
    data_ = static_cast<char*>(gpu::allocate_pinned(bytes));
    bytes_ = bytes;
  }

  Device device_;
  char* data_ = nullptr;
  std::size_t bytes_ = 0;
  gpu::Event copied_back_;  // of the last operation, on whatever stream it was
};

// Host images of an operation's tensors, laid out in staging memory one behind the other.
class Staging {
 public:
  Staging(StagingMemory& memory, Stream stream) : memory_(memory), stream_(stream) {}

  // First all tensors are announced, then the memory is taken. `widened`: bf16 also gets an fp32 image.
  std::size_t add(const Tensor& tensor, bool widened = false) {
    Image image{tensor, bytes_, 0, widened && tensor.dtype() == DType::bf16, false};
    bytes_ += padded(tensor.bytes());
    image.wide_offset = bytes_;
    if (image.widened) bytes_ += padded(static_cast<std::size_t>(tensor.elements()) * sizeof(float));
    images_.push_back(image);
    return images_.size() - 1;
  }
  void take() { base_ = memory_.take(std::max<std::size_t>(bytes_, 1)); }

  // The dtype of the host operation: fp32 where the image is widened.
  Tensor image(std::size_t index) const {
    const Image& image = images_[index];
    if (image.widened) return Tensor(base_ + image.wide_offset, DType::fp32, image.tensor.shape());
    return Tensor(base_ + image.offset, image.tensor.dtype(), image.tensor.shape());
  }

  void copy_in(std::size_t index) {
    Image& image = images_[index];
    gpu::copy(stream_, base_ + image.offset, image.tensor.data(), image.tensor.bytes());
    image.copied_in = true;
  }
  // Waits for the copies in.
  void arrive() {
    gpu::synchronize(stream_);
    for (const Image& image : images_)
      if (image.widened && image.copied_in)
        std::transform(narrow(image), narrow(image) + image.tensor.elements(), wide(image),
                       [](BFloat16 x) { return to_float(x); });
  }
  void copy_out(std::size_t index) {
    const Image& image = images_[index];
    if (image.widened)
      std::transform(wide(image), wide(image) + image.tensor.elements(), narrow(image),
                     [](float x) { return to_bfloat16(x); });
    gpu::copy(stream_, image.tensor.data(), base_ + image.offset, image.tensor.bytes());
  }
  void finish() { memory_.copied_back(stream_); }

 private:
  struct Image {
    Tensor tensor;  // on the device
    std::size_t offset, wide_offset;
    bool widened, copied_in;
  };

  static std::size_t padded(std::size_t bytes) { return (bytes + 255) / 256 * 256; }
  BFloat16* narrow(const Image& image) const { return reinterpret_cast<BFloat16*>(base_ + image.offset); }
  float* wide(const Image& image) const { return reinterpret_cast<float*>(base_ + image.wide_offset); }

  StagingMemory& memory_;
  Stream stream_;
  std::vector<Image> images_;
  std::size_t bytes_ = 0;
  char* base_ = nullptr;
};

// The copy back of a started operation: the operation itself is over.
class CopyBack final : public Pending::Operation {
 public:
  CopyBack(Device device, Stream stream) : done_(device) { done_.record(stream); }

  void wait(Stream stream) override {
    if (stream.device.kind == DeviceKind::cuda)
      done_.wait(stream);
    else
      done_.synchronize();
  }

 private:
  gpu::Event done_;
};

class StagedCommunicator final : public Communicator {
 public:
  using Communicator::all_reduce;

  StagedCommunicator(std::unique_ptr<Communicator> host, Device device, std::shared_ptr<StagingMemory> memory)
      : host_(std::move(host)), device_(device), memory_(std::move(memory)) {}

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }

  void all_reduce(const Tensor& tensor, ReduceOp op, Stream stream) override {
    if (on_host(tensor)) return host_->all_reduce(tensor, op, stream);
    check_operand(tensor, "all_reduce", device_);
    check_stream(stream, device_);
    Staging staging(*memory_, stream);
    const std::size_t values = staging.add(tensor, true);
    staging.take();
    staging.copy_in(values);
    staging.arrive();
    host_->all_reduce(staging.image(values), op, {});
    staging.copy_out(values);
    staging.finish();
  }

  Pending start_all_reduce(const Tensor& tensor, ReduceOp op, Stream stream) override {
    if (on_host(tensor)) return host_->start_all_reduce(tensor, op, stream);
    all_reduce(tensor, op, stream);
    return copy_back(stream);
  }

  void reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op, Stream stream) override {
    if (on_host(input) && on_host(output)) return host_->reduce_scatter(input, output, op, stream);
    check_reduce_scatter(input, output, size(), device_);
    check_stream(stream, device_);
    Staging staging(*memory_, stream);
    const std::size_t whole = staging.add(input, true), part = staging.add(output, true);
    staging.take();
    staging.copy_in(whole);
    staging.arrive();
    host_->reduce_scatter(staging.image(whole), staging.image(part), op, {});
    staging.copy_out(part);
    staging.finish();
  }

  Pending start_reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op, Stream stream) override {
    if (on_host(input) && on_host(output)) return host_->start_reduce_scatter(input, output, op, stream);
    reduce_scatter(input, output, op, stream);
    return copy_back(stream);
  }

  void all_gather(const Tensor& input, const Tensor& output, Stream stream) override {
    if (on_host(input) && on_host(output)) return host_->all_gather(input, output, stream);
    check_all_gather(input, output, size(), device_);
    check_stream(stream, device_);
    Staging staging(*memory_, stream);
    const std::size_t whole = staging.add(output);
    staging.take();
    // In place on the host, on all ranks.
    const Tensor gathered = staging.image(whole);
    const Tensor own(part_of(gathered, input.elements(), rank()), input.dtype(), {input.elements()});
    gpu::copy(stream, own.data(), input.data(), input.bytes());
    staging.arrive();
    host_->all_gather(own, gathered, {});
    staging.copy_out(whole);
    staging.finish();
  }

  Pending start_all_gather(const Tensor& input, const Tensor& output, Stream stream) override {
    if (on_host(input) && on_host(output)) return host_->start_all_gather(input, output, stream);
    all_gather(input, output, stream);
    return copy_back(stream);
  }

  void broadcast(const Tensor& tensor, int root, Stream stream) override {
    if (on_host(tensor)) return host_->broadcast(tensor, root, stream);
    check_operand(tensor, "broadcast", device_);
    check_stream(stream, device_);
    check_root(root, size());
    Staging staging(*memory_, stream);
    const std::size_t values = staging.add(tensor);
    staging.take();
    if (rank() == root) {
      staging.copy_in(values);
      staging.arrive();
    }
    host_->broadcast(staging.image(values), root, {});
    if (rank() != root) staging.copy_out(values);
    staging.finish();
  }

  void exchange(std::span<const Transfer> transfers, Stream stream) override {
    if (all_on_host(transfers)) return host_->exchange(transfers, stream);
    check_transfers(transfers, size(), device_);
    check_stream(stream, device_);
    Staging staging(*memory_, stream);
    for (const Transfer& transfer : transfers) staging.add(transfer.tensor);
    staging.take();
    std::vector<Transfer> images;
    for (std::size_t i = 0; i < transfers.size(); ++i) {
      images.push_back({transfers[i].direction, transfers[i].peer, staging.image(i)});
      if (transfers[i].direction == Transfer::Direction::send) staging.copy_in(i);
    }
    staging.arrive();
    host_->exchange(images, {});
    for (std::size_t i = 0; i < transfers.size(); ++i)
      if (transfers[i].direction == Transfer::Direction::receive) staging.copy_out(i);
    staging.finish();
  }

  Pending start_exchange(std::span<const Transfer> transfers, Stream stream) override {
    if (all_on_host(transfers)) return host_->start_exchange(transfers, stream);
    exchange(transfers, stream);
    return copy_back(stream);
  }

  void barrier() override { host_->barrier(); }

  std::unique_ptr<Communicator> subgroup(const std::vector<int>& ranks) override {
    return std::make_unique<StagedCommunicator>(host_->subgroup(ranks), device_, memory_);
  }

  void cancel() override { host_->cancel(); }
  void abort(int exit_code) override { host_->abort(exit_code); }

 private:
  static bool on_host(const Tensor& tensor) { return tensor.device().kind == DeviceKind::cpu; }
  static bool all_on_host(std::span<const Transfer> transfers) {
    return std::ranges::all_of(transfers, [](const Transfer& transfer) { return on_host(transfer.tensor); });
  }
  Pending copy_back(Stream stream) const { return Pending(std::make_unique<CopyBack>(device_, stream)); }

  std::unique_ptr<Communicator> host_;
  Device device_;
  std::shared_ptr<StagingMemory> memory_;
};

}  // namespace

std::unique_ptr<Communicator> make_staged_communicator(std::unique_ptr<Communicator> host, Device device) {
  return std::make_unique<StagedCommunicator>(std::move(host), device, std::make_shared<StagingMemory>(device));
}

}  // namespace fulmen
