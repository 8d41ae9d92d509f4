// Filters as they are described, and chunks that are unpacked to see what they hold.
#include "framework/hdf5_chunks.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>
#include <zlib.h>

#include "framework/error.h"

namespace fulmen::hdf5 {

namespace {

constexpr std::uint64_t checksum_bytes = 4;

// The bytes that a zlib stream comes to; more than `most` where it is damaged, or comes to more.
std::uint64_t inflated_bytes(Part packed, std::uint64_t most) {
  z_stream stream{};
  FULMEN_CHECK(inflateInit(&stream) == Z_OK, "zlib does not start");
  std::vector<unsigned char> in(std::size_t{1} << 16), out(std::size_t{1} << 16);
  std::uint64_t total = 0;
  int result = Z_OK;
  while (result == Z_OK && total <= most) {
    if (stream.avail_in == 0) {
      const std::uint64_t some = std::min<std::uint64_t>(in.size(), packed.left());
      if (some == 0) break;  // it ends too early
      packed.copy(in.data(), some);
      stream.next_in = in.data();
      stream.avail_in = static_cast<uInt>(some);
    }
    stream.next_out = out.data();
    stream.avail_out = static_cast<uInt>(out.size());
    result = inflate(&stream, Z_NO_FLUSH);
    total += out.size() - stream.avail_out;
  }
  inflateEnd(&stream);
  return result == Z_STREAM_END ? total : most + 1;
}

}  // namespace

Filters read_filters(Part message, const std::string& where) {
  constexpr std::uint64_t deflate = 1, shuffle = 2, checksum = 3, first_with_name = 256;
  const std::uint8_t version = message.byte();
  const std::uint64_t count = message.byte();
  if (version < 1 || version > 2) refuse_damage(where, "its filters are none");
  if (version == 1) message.skip(6);
  Filters filters;
  const auto take = [&](bool& filter, bool in_order) {
    if (filter || !in_order) refuse_kind(where, "has its filters in another order than shuffle, deflate, fletcher32");
    filter = true;
  };
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t id = message.number(2);
    const std::uint64_t name = version == 1 || id >= first_with_name ? message.number(2) : 0;
    message.skip(2);
    const std::uint64_t values = message.number(2);
    message.skip(version == 1 ? (name + 7) / 8 * 8 : name);
    message.skip(4 * (version == 1 ? (values + 1) / 2 * 2 : values));
    if (id == shuffle)
      take(filters.shuffle, !filters.deflate && !filters.checksum);
    else if (id == deflate)
      take(filters.deflate, !filters.checksum);
    else if (id == checksum)
      take(filters.checksum, true);
    else
      refuse_kind(where, fmt::format("is compressed or filtered (filter {} of HDF5)", id));
  }
  return filters;
}

void FilteredChunks::check(const FileBytes& file, const std::vector<std::int64_t>& offset, const Shape& shape,
                           const std::string& where) {
  if (places_.empty() || std::ranges::find(shape, 0) != shape.end()) return;
  std::vector<std::int64_t> first = offset;
  for (std::size_t d = 0; d < first.size(); ++d) first[d] -= first[d] % chunk_[d];
  const std::vector<std::int64_t> begin = first;
  for (;;) {
    const auto found = places_.find(first);
    if (found != places_.end() && checked_.insert(first).second) unpack(file, found->second, where);
    std::size_t d = first.size();
    while (d > 0) {
      first[d - 1] += chunk_[d - 1];
      if (first[d - 1] < offset[d - 1] + shape[d - 1]) break;
      first[d - 1] = begin[d - 1];
      --d;
    }
    if (d == 0) return;
  }
}

void FilteredChunks::unpack(const FileBytes& file, const Place& place, const std::string& where) const {
  const std::uint64_t apart = filters_.checksum ? checksum_bytes : 0;
  std::uint64_t unpacked = place.bytes - std::min(place.bytes, apart);
  if (place.bytes >= apart && filters_.deflate) unpacked = inflated_bytes(file.read(place.address, unpacked), bytes_);
  if (place.bytes < apart || unpacked != bytes_)
    refuse_damage(where, fmt::format("the chunk at {} does not unpack into {} bytes", place.address, bytes_));
}

}  // namespace fulmen::hdf5
