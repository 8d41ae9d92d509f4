// Runs linear attention on tensors from files, for bench/attention_error.py: reads
// FOLDER/{query,key,value,d_output}.bf16 and slope.fp64, writes FOLDER/{output,d_query,d_key,d_value}.bf16. Tensors are
// [batch, length, heads, width], as raw bytes.
//
//   attention_outputs FOLDER BATCH LENGTH HEADS WIDTH
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <vector>

#include "framework/transfer.h"
#include "kernels/linear_attention.h"

namespace {

using namespace fulmen;

class Files {
 public:
  Files(std::filesystem::path folder, const Execution& execution) : folder_(std::move(folder)), execution_(execution) {}

  Tensor read(const std::string& name, DType dtype, const Shape& shape) {
    const Tensor tensor = make(dtype, shape);
    std::vector<char> bytes(tensor.bytes());
    std::ifstream file(folder_ / name, std::ios::binary);
    file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!file) throw UserError((folder_ / name).string(), "cannot be read, or is too short");
    copy_to_device(execution_, bytes.data(), tensor);
    return tensor;
  }
  Tensor make(DType dtype, const Shape& shape) {
    owned_.emplace_back(execution_.device, dtype, shape, MemoryKind::data, *execution_.ledger);
    return owned_.back();
  }
  void write(const std::string& name, const Tensor& tensor) {
    std::vector<char> bytes(tensor.bytes());
    copy_to_host(execution_, tensor, bytes.data());
    std::ofstream file(folder_ / name, std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!file) throw UserError((folder_ / name).string(), "cannot be written");
  }

 private:
  std::filesystem::path folder_;
  const Execution& execution_;
  std::vector<OwnedTensor> owned_;
};

void run(char** arguments) {
  const ExecutionResources resources(Device::cuda(0));
  const Execution& execution = resources.execution();
  Files files(arguments[1], execution);
  const Shape shape = {std::atoll(arguments[2]), std::atoll(arguments[3]), std::atoll(arguments[4]),
                       std::atoll(arguments[5])};
  LinearAttentionInputs inputs;
  inputs.query = files.read("query.bf16", DType::bf16, shape);
  inputs.key = files.read("key.bf16", DType::bf16, shape);
  inputs.value = files.read("value.bf16", DType::bf16, shape);
  inputs.query_key_activation = Activation::none;
  inputs.slope = files.read("slope.fp64", DType::fp64, {shape[2]});
  LinearAttentionOutputs outputs;
  outputs.output = files.make(DType::bf16, shape);
  linear_attention_forward(execution, inputs, outputs);
  LinearAttentionGradients gradients;
  gradients.d_output = files.read("d_output.bf16", DType::bf16, shape);
  gradients.d_query = files.make(DType::bf16, shape);
  gradients.d_key = files.make(DType::bf16, shape);
  gradients.d_value = files.make(DType::bf16, shape);
  linear_attention_backward(execution, inputs, gradients);
  files.write("output.bf16", outputs.output);
  files.write("d_query.bf16", gradients.d_query);
  files.write("d_key.bf16", gradients.d_key);
  files.write("d_value.bf16", gradients.d_value);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 6) {
    std::fprintf(stderr, "usage: attention_outputs FOLDER BATCH LENGTH HEADS WIDTH\n");
    return 2;
  }
  try {
    run(arguments);
  } catch (const fulmen::Error& error) {
    std::fprintf(stderr, "attention_outputs: error: %s\n", error.what());
    return static_cast<int>(error.code());
  }
  return 0;
}
