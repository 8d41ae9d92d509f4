// Ranges of visible keys, by a binary search for each query.
#include "kernels/cuda/softmax_attention_ranges.cuh"

namespace fulmen::cuda {
namespace {

// The first of `count` increasing positions that is at least `least`.
__device__ int lower_bound(const std::int64_t* positions, int count, std::int64_t least) {
  int low = 0, high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (positions[middle] < least)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

__global__ void __launch_bounds__(pass_threads)
    query_ranges_kernel(const std::int64_t* query_positions, const std::int64_t* key_positions,
                        const std::int64_t* first_visible, bool all, std::int64_t queries, int length, int keys,
                        KeyRange* ranges) {
  const std::int64_t at = std::int64_t{blockIdx.x} * pass_threads + threadIdx.x;
  if (at >= queries) return;
  if (all) {
    ranges[at] = {0, keys};
    return;
  }
  const std::int64_t first = first_visible != nullptr ? first_visible[at] : 0;
  if (query_positions == nullptr) {
    ranges[at] = {static_cast<int>(max(first, std::int64_t{0})), static_cast<int>(at % length) + 1};
    return;
  }
  const std::int64_t* const of_row = key_positions + at / length * keys;
  ranges[at] = {lower_bound(of_row, keys, first), lower_bound(of_row, keys, query_positions[at] + 1)};
}

__global__ void __launch_bounds__(pass_threads)
    tile_ranges_kernel(const KeyRange* ranges, std::int64_t count, int length, int tiles, int tile, KeyRange* result) {
  const std::int64_t at = std::int64_t{blockIdx.x} * pass_threads + threadIdx.x;
  if (at >= count) return;
  const int first = static_cast<int>(at % tiles) * tile;
  KeyRange all{0, 0};
  for (int i = first; i < min(first + tile, length); ++i) all = hull(all, ranges[at / tiles * length + i]);
  result[at] = all;
}

unsigned blocks_for(std::int64_t threads) { return static_cast<unsigned>(divide_up(threads, pass_threads)); }

}  // namespace

VisibleKeys visible_keys(const Execution& execution, const SoftmaxAttentionInputs& inputs, int tile) {
  const std::int64_t batch = inputs.query.size(0), length = inputs.query.size(1), keys = inputs.key.size(1);
  const std::int64_t tiles = divide_up(length, tile);
  FULMEN_CHECK(batch * length < (std::int64_t{1} << 31) && keys < (std::int64_t{1} << 31),
               "{} rows of {} queries and {} keys are too many for a GPU", batch, length, keys);
  const auto take = [&](std::int64_t count) {
    return static_cast<KeyRange*>(execution.scratch->take(DType::int64, {count}).data());
  };
  KeyRange *const ranges = take(batch * length), *const of_tiles = take(batch * tiles);
  query_ranges_kernel<<<blocks_for(batch * length), pass_threads, 0, stream_of(execution)>>>(
      inputs.query_positions.as<std::int64_t>(), inputs.key_positions.as<std::int64_t>(),
      inputs.first_visible.as<std::int64_t>(), inputs.sees_all, batch * length, static_cast<int>(length),
      static_cast<int>(keys), ranges);
  FULMEN_CUDA_CHECK_LAUNCH();
  tile_ranges_kernel<<<blocks_for(batch * tiles), pass_threads, 0, stream_of(execution)>>>(
      ranges, batch * tiles, static_cast<int>(length), static_cast<int>(tiles), tile, of_tiles);
  FULMEN_CUDA_CHECK_LAUNCH();
  return {ranges, of_tiles, static_cast<int>(tiles)};
}

}  // namespace fulmen::cuda
