// The index of a checkpoint: virtual datasets over the pieces in its shards.
#include "tests/fuzz/checkpoint_files.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fulmen::fuzz::put_checkpoint("parameters.h5", fulmen::fuzz::as_text(data, size), "shard-00000.h5");
  fulmen::fuzz::read_checkpoint();
  return 0;
}
