// A safetensors file: its header, and the elements of what is small enough.
#include <vector>

#include "infer/safetensors.h"
#include "tests/fuzz/scratch.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fulmen;
  const std::filesystem::path path = fuzz::write("model.safetensors", fuzz::as_text(data, size));
  fuzz::accepts([&] {
    const SafetensorsReader reader(path);
    for (const std::string& name : reader.names()) {
      const Shape& shape = reader.tensor(name).shape;
      if (elements_of(shape) > 1 << 16 || shape.size() > max_tensor_rank) continue;
      std::vector<double> memory(static_cast<std::size_t>(elements_of(shape)) + 1);
      const std::vector<std::int64_t> offset(shape.size(), 0);
      for (const DType dtype : {DType::fp64, DType::fp32, DType::int64, DType::uint8})
        fuzz::accepts([&] { reader.read(name, offset, Tensor(memory.data(), dtype, shape)); });
    }
  });
  return 0;
}
