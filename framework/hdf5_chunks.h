// Chunks of a dataset that are compressed or filtered. The library takes it on trust that a chunk has its full size
// when it is unpacked, and reads beyond it where it has not. So each chunk is unpacked here first, within bounds.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "framework/hdf5_bytes.h"
#include "framework/tensor.h"

namespace fulmen::hdf5 {

// Shuffling, deflate and a checksum, in the order in which a writer applies them; others are not read.
struct Filters {
  bool shuffle = false, deflate = false, checksum = false;
};
// Reads the message. Throws UserError for other filters, and for another order.
Filters read_filters(Part message, const std::string& where);

class FilteredChunks {
 public:
  struct Place {
    std::uint64_t address = no_address, bytes = 0;  // as it is stored
  };

  FilteredChunks() = default;
  // `chunk`: extents in elements. `bytes`: of a chunk when it is unpacked.
  FilteredChunks(Filters filters, Shape chunk, std::uint64_t bytes)
      : filters_(filters), chunk_(std::move(chunk)), bytes_(bytes) {}

  // `first`: the place of the chunk's first element.
  void add(const std::vector<std::int64_t>& first, Place place) { places_[first] = place; }
  bool empty() const { return places_.empty(); }
  // Unpacks the chunks that the hyperslab touches, each but once. Throws UserError naming `where`.
  void check(const FileBytes& file, const std::vector<std::int64_t>& offset, const Shape& shape,
             const std::string& where);

 private:
  void unpack(const FileBytes& file, const Place& place, const std::string& where) const;

  Filters filters_;
  Shape chunk_;
  std::uint64_t bytes_ = 0;
  std::map<std::vector<std::int64_t>, Place> places_;
  std::set<std::vector<std::int64_t>> checked_;
};

}  // namespace fulmen::hdf5
