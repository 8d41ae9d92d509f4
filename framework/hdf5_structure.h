// The structure of an HDF5 file, checked before the library is shown it. The library trusts what it reads: sizes,
// places and counts of a damaged or hostile file lead it beyond its buffers, or round in circles. The format that the
// library writes by default passes: superblock 0 or 1, groups by symbol tables or links, plain numbers. All parts lie
// inside the file, and no part within itself. Source: "HDF5 File Format Specification Version 3.0".
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "framework/hdf5_bytes.h"
#include "framework/hdf5_chunks.h"

namespace fulmen::hdf5 {

// The types of header messages that are looked into.
enum class Message : std::uint16_t {
  nothing = 0x00,
  dataspace = 0x01,
  link_info = 0x02,
  datatype = 0x03,
  old_fill_value = 0x04,
  fill_value = 0x05,
  link = 0x06,
  external_files = 0x07,
  layout = 0x08,
  group_info = 0x0a,
  filters = 0x0b,
  attribute = 0x0c,
  continuation = 0x10,
  symbol_table = 0x11,
  attribute_info = 0x15,
};

constexpr int highest_tree = 32;  // levels; a tree has at least two children at each

struct HeaderMessage {
  Message type = Message::nothing;
  bool shared = false;  // it stands for a message that lies elsewhere
  std::uint64_t address = 0, bytes = 0;
};

struct ObjectHeader {
  std::vector<HeaderMessage> messages;
  bool is_group = false;
  bool is_dataset = false;
};

class Structure {
 public:
  // Follows the groups. Throws UserError for what is not an HDF5 file, is cut short, damaged, or of a kind that is not
  // read.
  explicit Structure(const std::filesystem::path& path);

  // Checks all that the library looks at when it opens the object of that name. That is the type, shape and place of
  // its elements, and its attributes. Throws UserError, naming it, also when no such object is found. Follows soft
  // links. Returns the chunks that are still to be unpacked before they are read: none where nothing is filtered.
  FilteredChunks check_object(const std::string& name) const;
  const FileBytes& file() const { return file_; }
  // Whether such a path is a dataset; false for links out of the file and those that lead nowhere.
  bool is_dataset(const std::string& name) const;

 private:
  struct Entry {
    enum class Kind { hard, soft, outside } kind = Kind::outside;
    std::uint64_t address = no_address;
    std::string target;  // of a soft link
  };
  struct SymbolTable {
    std::uint64_t tree = no_address, heap = no_address;
    bool operator==(const SymbolTable&) const = default;
  };

  void read_superblock();
  void check_root_entry(Part& entry);
  const ObjectHeader& header(std::uint64_t address);
  void read_messages(Part block, std::uint64_t address, ObjectHeader& header, std::vector<HeaderMessage>& more) const;
  void walk_object(const std::string& path, std::uint64_t address, int depth);
  void walk_group(const std::string& path, const ObjectHeader& header, int depth);
  void walk_symbols(const std::string& path, const SymbolTable& table, int depth);
  void walk_symbol_tree(const std::string& path, std::uint64_t address, int parent_level, const Part& names, int depth);
  void walk_symbol_node(const std::string& path, std::uint64_t address, const Part& names, int depth);
  void take_symbol(const std::string& path, Part& entry, const Part& names, int depth);
  void take_link(const std::string& path, Part message, int depth);
  void add(const std::string& path, Entry entry, int depth);
  Part read_heap(std::uint64_t address);
  Part read_own(std::uint64_t address, std::uint64_t bytes);  // a part that nothing else may refer to
  SymbolTable symbol_table_of(const ObjectHeader& header) const;
  const ObjectHeader* find(const std::string& name) const;

  FileBytes file_;
  std::uint64_t leaf_k_ = 0, group_k_ = 0, chunk_k_ = 32;
  std::uint64_t root_ = no_address;
  std::map<std::uint64_t, ObjectHeader> objects_;
  std::map<std::string, Entry> entries_;  // by path: "/parameters/w"
  std::set<std::uint64_t> groups_;
  std::uint64_t claimed_bytes_ = 0;
  std::set<std::uint64_t> claimed_;  // places of parts that belong to one object alone
};

// Checks the messages of a dataset or group that the library decodes when it opens it. `chunk_k`: half the children
// that a node of the tree of chunks has at most.
// Returns its filtered chunks.
FilteredChunks check_messages(const FileBytes& file, const ObjectHeader& header, std::uint64_t chunk_k,
                              const std::string& where);

}  // namespace fulmen::hdf5
