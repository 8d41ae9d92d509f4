// A shard of a checkpoint.
#include "tests/fuzz/checkpoint_files.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fulmen::fuzz::put_checkpoint("shard-00000.h5", fulmen::fuzz::as_text(data, size), "parameters.h5");
  fulmen::fuzz::read_checkpoint();
  return 0;
}
