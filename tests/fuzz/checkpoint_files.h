// A small checkpoint with the input as one of its files, under a manifest that fits it, and all that is read of it.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "framework/files.h"
#include "tests/fuzz/scratch.h"

namespace fulmen::fuzz {

// The other file is a seed's: FULMEN_FUZZ_FILES is the folder that holds a whole checkpoint.
inline void put_checkpoint(const std::string& mutated, std::string_view bytes, const std::string& other) {
  static const std::string rest = read_text(std::filesystem::path(FULMEN_FUZZ_FILES) / other);
  write("checkpoint/" + mutated, bytes);
  static const bool once = (write("checkpoint/" + other, rest), true);
  (void)once;
  write("checkpoint/manifest.yaml",
        fmt::format("format: fulmen-checkpoint\nversion: 1\nstep: 1\ntokens: 1\nsamples: 1\nmodel: {{}}\n"
                    "configuration: {{}}\nfiles:\n- {{file: {}, bytes: {}, xxh3: \"0\"}}\n"
                    "- {{file: {}, bytes: {}, xxh3: \"0\"}}\n",
                    mutated, bytes.size(), other, rest.size()));
}

inline void read_checkpoint() {
  accepts([&] {
    const CheckpointReader reader(scratch() / "checkpoint");
    for (const std::string& name : reader.names()) {
      accepts([&] {
        const Shape shape = reader.shape(name);
        const DType dtype = reader.dtype(name);
        if (elements_of(shape) > 1 << 16)
          return;  // what would be read of it is asked for by the model, not by the file
        std::vector<std::uint64_t> memory(static_cast<std::size_t>(elements_of(shape)) + 1);
        reader.read({name, shape, std::vector<std::int64_t>(shape.size(), 0), Tensor(memory.data(), dtype, shape)});
      });
    }
  });
}

}  // namespace fulmen::fuzz
