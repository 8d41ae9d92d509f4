// The elements and attributes of a dataset, as its header describes them.
#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "framework/error.h"
#include "framework/hdf5_structure.h"
#include "framework/outside_numbers.h"
#include "framework/tensor.h"

namespace fulmen::hdf5 {

namespace {

constexpr std::uint64_t most_dimensions = 32;  // of the format
constexpr std::uint64_t largest_chunk = std::uint64_t{1} << 30;

struct Extent {
  Shape shape;
  std::uint64_t elements = 1;
};

class Checker {
 public:
  Checker(const FileBytes& file, const ObjectHeader& header, std::uint64_t chunk_k, const std::string& where)
      : file_(file), header_(header), chunk_k_(chunk_k), where_(where) {}

  FilteredChunks check() {
    for (const HeaderMessage& message : header_.messages) {
      if (message.type == Message::attribute) check_attribute(content(message));
      if (message.type == Message::attribute_info) refuse_kind(where_, "keeps its attributes in a newer form");
    }
    if (header_.is_dataset) check_dataset();
    return std::move(filtered_);
  }

 private:
  Part content(const HeaderMessage& message) const {
    Part part = file_.read(message.address, message.bytes);
    return part;
  }

  // The library takes one of several, and not always the same.
  std::optional<Part> only(Message type) const {
    const auto is = [&](const HeaderMessage& message) { return message.type == type; };
    const auto found = std::ranges::find_if(header_.messages, is);
    if (found == header_.messages.end()) return std::nullopt;
    if (std::ranges::count_if(header_.messages, is) > 1) refuse_damage(where_, "it is described twice");
    return content(*found);
  }

  void check_dataset() {
    if (only(Message::external_files))
      throw UserError(where_, "keeps its elements in other files (external storage), which are not read",
                      "put the data itself into the file");
    if (const auto filters = only(Message::filters)) filters_ = read_filters(*filters, where_);
    const Extent extent = read_extent(*only(Message::dataspace), true);
    Part type = *only(Message::datatype);
    const std::uint64_t element = read_type(type, false);
    for (const Message kind : {Message::fill_value, Message::old_fill_value})
      if (auto fill = only(kind)) check_fill(*fill, kind == Message::old_fill_value, element);
    auto layout = only(Message::layout);
    if (!layout) refuse_damage(where_, "it does not say where its elements lie");
    check_layout(*layout, extent, element);
  }

  Extent read_extent(Part message, bool of_dataset) const {
    const std::uint8_t version = message.byte();
    const std::uint64_t rank = message.byte();
    const std::uint8_t flags = message.byte();
    const std::uint8_t kind = message.byte();  // reserved in version 1
    if (version == 1) message.skip(4);
    if (version < 1 || version > 2 || rank > most_dimensions || flags > 1) refuse_damage(where_, "its shape is none");
    if (version == 2 && (kind > 1 || (kind == 1) != (rank > 0)))
      refuse_kind(where_, "has no elements, not even a shape");
    Extent extent;
    for (std::uint64_t d = 0; d < rank; ++d) extent.shape.push_back(static_cast<std::int64_t>(message.number(8)));
    for (std::uint64_t d = 0; d < rank && flags == 1; ++d)
      if (message.number(8) < static_cast<std::uint64_t>(extent.shape[d])) refuse_damage(where_, "its shape is none");
    if (!is_countable(extent.shape)) {
      if (!of_dataset) refuse_damage(where_, "an attribute is too large");
      throw UserError(where_, fmt::format("has the shape {}, which no file can hold", to_string(extent.shape)),
                      "restore the file, or make it anew");
    }
    for (const std::int64_t size : extent.shape) extent.elements *= static_cast<std::uint64_t>(size);
    return extent;
  }

  // The bytes of an element. Plain integers and IEEE numbers; of attributes, also text and references.
  std::uint64_t read_type(Part& message, bool of_attribute) const {
    constexpr std::uint8_t integer = 0, floating = 1, string = 3, reference = 7, variable = 9;
    const std::uint8_t first = message.byte();
    const std::uint8_t kind = first & 0xf, version = first >> 4;
    const std::uint64_t bits = message.number(3), size = message.number(4);
    if (version < 1 || version > 3) refuse_damage(where_, "its type is none");
    if (kind == integer) return read_integer(message, bits, size);
    if (kind == floating) return read_floating(message, bits, size);
    if (of_attribute && (kind == string || kind == reference) && size > 0 && size <= 65536) return size;
    if (of_attribute && kind == variable && size == 16 && (bits & 0xf) <= 1) {
      Part base = message.part(message.left());
      const std::uint8_t inner = base.byte() & 0xf;
      base.go_to(0);
      if (inner != variable) {
        read_type(base, true);
        message.go_to(message.size() - base.left());
        return size;
      }
    }
    throw UserError(where_,
                    fmt::format("holds {} of a type that is not read here", of_attribute ? "an attribute" : "elements"),
                    "store it as 32- or 64-bit floating-point numbers or integers, or unsigned 16- or 8-bit integers");
  }

  std::uint64_t read_integer(Part& message, std::uint64_t bits, std::uint64_t size) const {
    constexpr std::uint64_t order_and_sign = 0x9;
    const std::uint64_t offset = message.number(2), precision = message.number(2);
    const bool plain = size == 1 || size == 2 || size == 4 || size == 8;
    if (!plain || offset != 0 || precision != size * 8 || (bits & ~order_and_sign) != 0)
      refuse_kind(where_, "holds integers that do not fill their bytes");
    return size;
  }

  std::uint64_t read_floating(Part& message, std::uint64_t bits, std::uint64_t size) const {
    struct Ieee {
      std::uint64_t size, exponent_at, exponent_bits, mantissa_bits, bias;
    };
    constexpr std::array<Ieee, 2> known = {{{4, 23, 8, 23, 127}, {8, 52, 11, 52, 1023}}};
    constexpr std::uint64_t order = 1, implied_one = 0x20;
    const std::uint64_t offset = message.number(2), precision = message.number(2);
    const std::uint64_t exponent_at = message.byte(), exponent_bits = message.byte();
    const std::uint64_t mantissa_at = message.byte(), mantissa_bits = message.byte(), bias = message.number(4);
    const bool ieee = std::ranges::any_of(known, [&](const Ieee& of) {
      return size == of.size && offset == 0 && precision == 8 * size && exponent_at == of.exponent_at &&
             exponent_bits == of.exponent_bits && mantissa_at == 0 && mantissa_bits == of.mantissa_bits &&
             bias == of.bias && (bits & ~order) == ((8 * size - 1) << 8 | implied_one);
    });
    if (!ieee) refuse_kind(where_, "holds floating-point numbers of another kind than 32 or 64 bits of IEEE 754");
    return size;
  }

  void check_fill(Part message, bool old, std::uint64_t element) const {
    std::uint64_t bytes = 0;
    if (old) {
      bytes = message.number(4);
    } else {
      constexpr std::uint8_t undefined = 0x10, defined = 0x20;
      const std::uint8_t version = message.byte();
      if (version < 1 || version > 3) refuse_damage(where_, "its fill value is none");
      const std::uint8_t flags = version == 3 ? message.byte() : 0;
      if (version < 3) {
        if (message.byte() > 3 || message.byte() > 2) refuse_damage(where_, "its fill value is none");
        if (message.byte() == 0 && version == 2) return;
      } else if ((flags & undefined) != 0 || (flags & defined) == 0) {
        return;
      }
      bytes = message.number(4);
      if (bytes == 0xffffffff) return;  // none
    }
    if (bytes != 0 && bytes != element) refuse_damage(where_, "its fill value has another size than its elements");
    message.skip(bytes);
  }

  void check_attribute(Part message) const {
    const std::uint8_t version = message.byte();
    const std::uint8_t flags = message.byte();
    const std::uint64_t name = message.number(2), type = message.number(2), space = message.number(2);
    if (version < 1 || version > 3) refuse_damage(where_, "an attribute is none");
    if (version > 1 && flags != 0) refuse_kind(where_, "has attributes with shared parts");
    if (version == 3) message.skip(1);
    const auto padded = [&](std::uint64_t bytes) { return version == 1 ? (bytes + 7) / 8 * 8 : bytes; };
    Part name_part = message.part(padded(name));
    if (name == 0 || name_part.text().size() >= name) refuse_damage(where_, "the name of an attribute has no end");
    Part type_part = message.part(padded(type));
    const std::uint64_t element = read_type(type_part, true);
    const Extent extent = read_extent(message.part(padded(space)), false);
    if (extent.elements > message.left() / element)
      refuse_damage(where_, "an attribute has fewer values than its shape");
  }

  void check_layout(Part& message, const Extent& extent, std::uint64_t element) {
    constexpr std::uint8_t compact = 0, contiguous = 1, chunked = 2, over_others = 3;
    const std::uint8_t version = message.byte();
    const std::uint8_t kind = message.byte();
    const std::uint64_t bytes = extent.elements * element;
    if (version == 4 && kind == over_others) return check_virtual(message, extent);
    if (version != 3 || kind > chunked)
      refuse_kind(where_, fmt::format("is laid out in version {} of the format", version));
    if (kind == compact) {
      const std::uint64_t held = message.number(2);
      if (held != bytes || held > message.left()) refuse_damage(where_, "it holds fewer elements than its shape");
    } else if (kind == contiguous) {
      const std::uint64_t address = message.address(), held = message.number(8);
      if (held != bytes) refuse_damage(where_, "it holds another number of elements than its shape");
      if (address != no_address) file_.require_inside(address, held, where_);
    } else {
      check_chunks(message, extent, element);
    }
  }

  void check_chunks(Part& message, const Extent& extent, std::uint64_t element) {
    const std::uint64_t dimensions = message.byte();
    const std::uint64_t tree = message.address();
    if (dimensions != extent.shape.size() + 1 || extent.shape.empty())
      refuse_damage(where_, "its chunks have other dimensions than it has");
    std::vector<std::uint64_t> chunk;
    std::uint64_t bytes = 1;
    for (std::uint64_t d = 0; d < dimensions; ++d) {
      chunk.push_back(message.number(4));
      if (chunk[d] == 0 || chunk[d] > largest_chunk / bytes)
        refuse_kind(where_, fmt::format("has chunks of more than {} bytes, or of none", largest_chunk));
      bytes *= chunk[d];
    }
    if (chunk.back() != element) refuse_damage(where_, "its chunks have elements of another size");
    if (filters_) filtered_ = FilteredChunks(*filters_, Shape(chunk.begin(), chunk.end() - 1), bytes);
    if (tree != no_address) check_chunk_tree(tree, -1, chunk, bytes);
  }

  void check_chunk_tree(std::uint64_t address, int parent_level, const std::vector<std::uint64_t>& chunk,
                        std::uint64_t bytes) {
    if (!seen_.insert(address).second) refuse_damage(where_, "a list of its chunks holds itself");
    const std::uint64_t key = 8 + 8 * chunk.size();
    Part node = file_.read(address, 24 + (2 * chunk_k_ + 1) * key + 2 * chunk_k_ * 8);
    node.expect("TREE");
    const bool of_chunks = node.byte() == 1;
    const int level = node.byte();
    const std::uint64_t children = node.number(2);
    if (!of_chunks || level > highest_tree || (parent_level >= 0 && level != parent_level - 1) ||
        children > 2 * chunk_k_)
      refuse_damage(where_, "the list of its chunks is no tree");
    node.skip(16);  // siblings, which reading does not follow
    for (std::uint64_t i = 0; i <= children; ++i) {
      const std::uint64_t held = node.number(4);
      if (node.number(4) != 0) refuse_kind(where_, "has chunks that are filtered in ways of their own");
      std::vector<std::int64_t> first;
      for (const std::uint64_t extent : chunk) {
        const std::uint64_t at = node.number(8);
        if (at % extent != 0 || at > std::uint64_t{most_elements})
          refuse_damage(where_, "a chunk lies between two others");
        first.push_back(static_cast<std::int64_t>(at));
      }
      first.pop_back();  // of the bytes of an element
      if (i == children) break;
      const std::uint64_t child = node.address();
      if (level > 0) {
        check_chunk_tree(child, level, chunk, bytes);
      } else {
        if (!filters_ && held != bytes) refuse_damage(where_, "a chunk has another size than the others");
        file_.require_inside(child, held, where_);
        if (filters_) filtered_.add(first, {child, held});
      }
    }
  }

  // The map lies in an object of a global heap.
  void check_virtual(Part& message, const Extent& extent) const {
    const std::uint64_t address = message.address(), index = message.number(4);
    if (address == no_address) return;
    Part map = heap_object(address, index);
    if (map.byte() != 0) refuse_kind(where_, "is a virtual dataset of a newer format");
    const std::uint64_t entries = map.number(8);
    for (std::uint64_t i = 0; i < entries; ++i) {
      map.text();
      map.text();
      check_selection(map, extent, false);
      check_selection(map, extent, true);
    }
    map.skip(4);  // a checksum, which the library compares
  }

  // Everything, or one block: what this program writes.
  void check_selection(Part& map, const Extent& extent, bool inside) const {
    constexpr std::uint64_t block = 2, everything = 3;
    const std::uint64_t kind = map.number(4), version = map.number(4);
    if (kind == everything && version == 1) return map.skip(8);
    const auto refuse = [&] {
      throw UserError(where_, "is a virtual dataset laid over something else than whole blocks, which is not read",
                      "put the data itself into the file");
    };
    if (kind != block || version != 1) refuse();
    map.skip(8);
    const std::uint64_t rank = map.number(4), blocks = map.number(4);
    if (rank != extent.shape.size() || rank == 0 || blocks != 1) refuse();
    std::vector<std::uint64_t> first;
    for (std::uint64_t d = 0; d < rank; ++d) first.push_back(map.number(4));
    for (std::uint64_t d = 0; d < rank; ++d) {
      const std::uint64_t last = map.number(4);
      if (last < first[d] || (inside && last >= static_cast<std::uint64_t>(extent.shape[d])))
        refuse_damage(where_, "is laid over blocks that lie outside of it");
    }
  }

  // It covers the whole heap, since the library reads all of it.
  Part heap_object(std::uint64_t address, std::uint64_t index) const {
    Part head = file_.read(address, 16);
    head.expect("GCOL");
    if (head.byte() != 1) refuse_kind(where_, "has a global heap of a newer format");
    head.skip(3);
    const std::uint64_t bytes = head.number(8);
    constexpr std::uint64_t least = 4096;
    if (bytes < least) refuse_damage(where_, "a global heap is too small");
    Part heap = file_.read(address, bytes);
    heap.skip(16);
    std::optional<Part> found;
    std::vector<bool> taken(65536);
    while (heap.left() >= 16) {
      const std::uint64_t number = heap.number(2);
      heap.skip(6);
      const std::uint64_t size = heap.number(8);
      if (taken[number]) refuse_damage(where_, "a global heap holds two objects of one number");
      taken[number] = true;
      if (number == 0) {
        if (size != heap.left() + 16) refuse_damage(where_, "the free space of a global heap is none");
        break;
      }
      Part object = heap.part((size + 7) / 8 * 8);
      if (size > object.size()) refuse_damage(where_, "an object of a global heap has no end");
      if (number == index) found = object.part(size);
    }
    if (!found) refuse_damage(where_, "its map is not where it must be");
    return *found;
  }

  const FileBytes& file_;
  const ObjectHeader& header_;
  std::uint64_t chunk_k_;
  const std::string& where_;
  std::optional<Filters> filters_;
  FilteredChunks filtered_;
  std::set<std::uint64_t> seen_;  // nodes of the tree of chunks
};

}  // namespace

FilteredChunks check_messages(const FileBytes& file, const ObjectHeader& header, std::uint64_t chunk_k,
                              const std::string& where) {
  return Checker(file, header, chunk_k, where).check();
}

}  // namespace fulmen::hdf5
