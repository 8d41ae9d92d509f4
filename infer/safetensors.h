// The safetensors format (github.com/huggingface/safetensors). 8 bytes, little-endian, have the header's length. The
// header is JSON with each tensor's dtype, shape and place. The elements follow, row-major and little-endian, without
// gaps.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "framework/tensor.h"

namespace fulmen {

// A tensor as a header declares it.
struct SafetensorsTensor {
  std::string name;
  std::string dtype;  // the format's own word: "F64", "F32", "F16", "BF16", "I64", "I32", "U8", ...
  Shape shape;        // of any rank; empty for a scalar
};

// The format's word for a dtype.
std::string safetensors_dtype(DType dtype);

class SafetensorsReader {
 public:
  // Reads and checks the header: its length against the file's, the JSON, each dtype, shape and byte count. The tensors
  // must fill the file without overlap or gap. Throws UserError.
  explicit SafetensorsReader(const std::filesystem::path& path);
  ~SafetensorsReader();
  SafetensorsReader(SafetensorsReader&&) noexcept;

  const std::filesystem::path& path() const;
  const std::map<std::string, std::string>& metadata() const;  // "__metadata__"
  std::vector<std::string> names() const;                      // alphabetical
  bool has(const std::string& name) const;
  const SafetensorsTensor& tensor(const std::string& name) const;  // throws UserError when there is none
  // Reads the hyperslab at `offset` of `memory`'s shape; `memory` may be strided. F64, F32, F16 and BF16 are converted
  // to fp32 or fp64 memory; otherwise both types must be the same. Throws UserError when they are not, and when the
  // file cannot be read. Only the bytes asked for are read, through a buffer of fixed size.
  void read(const std::string& name, const std::vector<std::int64_t>& offset, const Tensor& memory) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Writes one file whose tensors are all declared before the first is written, so that none has to be held.
class SafetensorsWriter {
 public:
  // Reserves the file's whole size in the folder of `path` under a temporary name. Throws UserError when there is no
  // room.
  SafetensorsWriter(const std::filesystem::path& path, const std::vector<SafetensorsTensor>& tensors,
                    const std::map<std::string, std::string>& metadata = {});
  ~SafetensorsWriter();  // without close(): removes the temporary file
  SafetensorsWriter(SafetensorsWriter&&) noexcept;

  // Writes the hyperslab at `offset` of `memory`'s shape. `memory` may be strided. fp32 and fp64 memory is converted to
  // F64, F32, F16 and BF16, rounded to nearest. Otherwise both types must be the same.
  void write(const std::string& name, const std::vector<std::int64_t>& offset, const Tensor& memory);
  // Checks that as many elements were written as declared, flushes to disk and gives the file its name.
  void close();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fulmen
