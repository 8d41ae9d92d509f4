// The superblock, headers of objects and groups.
#include "framework/hdf5_structure.h"

#include <algorithm>

#include <fmt/format.h>

#include "framework/error.h"
#include "framework/text.h"

namespace fulmen::hdf5 {

namespace {

constexpr std::string_view signature = "\x89HDF\r\n\x1a\n";
constexpr int deepest_group = 64;
constexpr int most_soft_links = 16;              // one through another, as in the library
constexpr std::uint64_t most_symbols = 1 << 14;  // half of what a node holds: nobody writes more than tens

[[noreturn]] void throw_too_short(const std::string& where) {
  throw UserError(where, "the file is truncated: it is shorter than it says", "restore the file, or make it anew");
}

// The types that the library knows and that may stand in a header without being looked into.
bool is_looked_into(Message type) {
  switch (type) {
    case Message::dataspace:
    case Message::link_info:
    case Message::datatype:
    case Message::old_fill_value:
    case Message::fill_value:
    case Message::link:
    case Message::external_files:
    case Message::layout:
    case Message::group_info:
    case Message::filters:
    case Message::attribute:
    case Message::symbol_table:
    case Message::attribute_info: return true;
    default: return false;
  }
}

bool has(const ObjectHeader& header, Message type) {
  return std::ranges::find(header.messages, type, &HeaderMessage::type) != header.messages.end();
}

std::string joined(const std::vector<std::string>& parts) {
  std::string path;
  for (const std::string& part : parts) path += "/" + part;
  return path;
}

}  // namespace

Structure::Structure(const std::filesystem::path& path) : file_(path) {
  read_superblock();
  walk_object("", root_, 0);
}

void Structure::read_superblock() {
  const std::string& where = file_.where();
  constexpr std::uint64_t longest = 100;  // version 1 with the root's entry
  Part block = file_.read(0, std::min(file_.size(), longest));
  if (block.left() <= signature.size()) throw_too_short(where);
  for (const char c : signature)
    if (block.byte() != static_cast<unsigned char>(c))
      throw UserError(where, "is not an HDF5 file: it does not begin as such", "check the path");
  const std::uint8_t version = block.byte();
  if (version > 1) refuse_kind(where, fmt::format("is an HDF5 file of the newer format (superblock {})", version));
  if (block.size() < longest) throw_too_short(where);
  block.skip(4);  // versions of parts
  if (block.byte() != 8 || block.byte() != 8) refuse_kind(where, "has addresses of other than 64 bits");
  block.skip(1);
  leaf_k_ = block.number(2);
  group_k_ = block.number(2);
  block.skip(4);
  if (version == 1) {
    chunk_k_ = block.number(2);
    block.skip(2);
  }
  for (const std::uint64_t k : {leaf_k_, group_k_, chunk_k_})
    if (k == 0 || k > most_symbols) refuse_damage(where, fmt::format("its nodes have {} children", k));
  if (block.address() != 0) refuse_kind(where, "is an HDF5 file within another file");
  if (block.address() != no_address) refuse_kind(where, "manages its free space");
  if (block.address() > file_.size()) throw_too_short(where);
  if (block.address() != no_address) refuse_kind(where, "is spread over several files");
  check_root_entry(block);
}

void Structure::check_root_entry(Part& entry) {
  entry.skip(8);
  root_ = entry.address();
  const std::uint64_t cached = entry.number(4);
  entry.skip(4);
  const SymbolTable table{entry.address(), entry.address()};
  // The library trusts the copy that is cached here, without a look at the header.
  const ObjectHeader& root = header(root_);
  if (cached > 1 || (cached == 1 && has(root, Message::symbol_table) && table != symbol_table_of(root)))
    refuse_damage(file_.where(), "the root's entry is not what its header says");
}

Part Structure::read_own(std::uint64_t address, std::uint64_t bytes) {
  if (!claimed_.insert(address).second)
    refuse_damage(file_.where(), fmt::format("the part at {} belongs to two others", address));
  // Parts that lie in each other would take more memory than the file has bytes.
  if (bytes > file_.size() - claimed_bytes_) refuse_damage(file_.where(), "its parts are larger than the file");
  claimed_bytes_ += bytes;
  return file_.read(address, bytes);
}

const ObjectHeader& Structure::header(std::uint64_t address) {
  if (const auto known = objects_.find(address); known != objects_.end()) return known->second;
  constexpr std::uint64_t prefix_bytes = 16;
  Part prefix = read_own(address, prefix_bytes);
  const std::uint8_t version = prefix.byte();
  if (version == 'O') refuse_kind(file_.where(), "has objects of the newer format");
  if (version != 1) refuse_damage(file_.where(), fmt::format("there is no object at {}", address));
  prefix.skip(7);
  const std::uint64_t bytes = prefix.number(4);
  ObjectHeader found;
  std::vector<HeaderMessage> more;
  read_messages(read_own(address + prefix_bytes, bytes), address + prefix_bytes, found, more);
  for (std::size_t i = 0; i < more.size(); ++i) {
    const HeaderMessage continued = more[i];  // the list grows
    read_messages(read_own(continued.address, continued.bytes), continued.address, found, more);
  }
  found.is_group = has(found, Message::symbol_table) || has(found, Message::link_info);
  found.is_dataset = has(found, Message::dataspace) && has(found, Message::datatype);
  if (found.is_group && found.is_dataset) refuse_damage(file_.where(), "an object is a group and a dataset");
  return objects_.emplace(address, std::move(found)).first->second;
}

void Structure::read_messages(Part block, std::uint64_t address, ObjectHeader& header,
                              std::vector<HeaderMessage>& more) const {
  constexpr std::size_t most_messages = 65536;
  while (block.left() > 0) {
    HeaderMessage message;
    message.type = static_cast<Message>(block.number(2));
    message.bytes = block.number(2);
    message.shared = (block.byte() & 2) != 0;
    block.skip(3);
    message.address = address + block.used();
    if (message.bytes % 8 != 0) refuse_damage(file_.where(), "a part of a header has an odd length");
    Part content = block.part(message.bytes);
    if (message.shared && is_looked_into(message.type)) refuse_kind(file_.where(), "has objects with shared parts");
    if (message.type == Message::continuation) {
      const std::uint64_t where = content.address();
      more.push_back({message.type, false, where, content.number(8)});
      if (message.shared) refuse_damage(file_.where(), "a header goes on elsewhere in two ways");
    } else if (is_looked_into(message.type)) {
      header.messages.push_back(message);
    }
    if (header.messages.size() + more.size() > most_messages) refuse_damage(file_.where(), "a header has no end");
  }
}

Structure::SymbolTable Structure::symbol_table_of(const ObjectHeader& header) const {
  const auto found = std::ranges::find(header.messages, Message::symbol_table, &HeaderMessage::type);
  if (found == header.messages.end()) return {};
  Part message = file_.read(found->address, found->bytes);
  const std::uint64_t tree = message.address();
  return {tree, message.address()};
}

void Structure::walk_object(const std::string& path, std::uint64_t address, int depth) {
  const ObjectHeader& found = header(address);
  if (path.empty() && !found.is_group) refuse_damage(file_.where(), "its root is no group");
  if (!found.is_group) return;
  // The library would follow a group within itself for ever.
  if (!groups_.insert(address).second) refuse_kind(file_.where(), fmt::format("the group {} has a second name", path));
  if (depth > deepest_group) refuse_kind(file_.where(), fmt::format("nests groups more than {} deep", deepest_group));
  walk_group(path, found, depth);
}

void Structure::walk_group(const std::string& path, const ObjectHeader& header, int depth) {
  if (has(header, Message::symbol_table)) {
    if (std::ranges::count(header.messages, Message::symbol_table, &HeaderMessage::type) > 1 ||
        has(header, Message::link_info))
      refuse_damage(file_.where(), fmt::format("the group {} has two lists", path));
    return walk_symbols(path, symbol_table_of(header), depth);
  }
  for (const HeaderMessage& message : header.messages) {
    Part content = file_.read(message.address, message.bytes);
    if (message.type == Message::link) {
      take_link(path, std::move(content), depth);
      continue;
    }
    if (message.type != Message::link_info) continue;
    if (content.byte() != 0) refuse_kind(file_.where(), "has groups of a newer format");
    content.skip((content.byte() & 1) != 0 ? 8 : 0);
    if (content.address() != no_address) refuse_kind(file_.where(), "keeps the names of a group in a fractal heap");
  }
}

void Structure::walk_symbols(const std::string& path, const SymbolTable& table, int depth) {
  const Part names = read_heap(table.heap);
  walk_symbol_tree(path, table.tree, -1, names, depth);
}

// The names of a group.
Part Structure::read_heap(std::uint64_t address) {
  Part head = read_own(address, 32);
  head.expect("HEAP");
  if (head.byte() != 0) refuse_kind(file_.where(), "has a heap of a newer format");
  head.skip(3);
  const std::uint64_t bytes = head.number(8);
  std::uint64_t free = head.number(8);
  Part data = read_own(head.address(), bytes);
  constexpr std::uint64_t end_of_list = 1;
  for (std::uint64_t blocks = 0; free != end_of_list; ++blocks) {
    data.go_to(free);
    const std::uint64_t next = data.number(8), length = data.number(8);
    if (blocks > bytes / 16 || length < 16 || length > bytes - free)
      refuse_damage(file_.where(), "the free space of a heap is none");
    free = next;
  }
  data.go_to(0);
  return data;
}

void Structure::walk_symbol_tree(const std::string& path, std::uint64_t address, int parent_level, const Part& names,
                                 int depth) {
  Part node = read_own(address, 24 + (2 * group_k_ + 1) * 8 + 2 * group_k_ * 8);
  node.expect("TREE");
  const bool groups = node.byte() == 0;
  const int level = node.byte();
  const std::uint64_t children = node.number(2);
  if (!groups || level > highest_tree || (parent_level >= 0 && level != parent_level - 1) || children > 2 * group_k_)
    refuse_damage(file_.where(), fmt::format("the names of the group {} are no tree", path));
  node.skip(16);  // siblings, which reading does not follow
  for (std::uint64_t i = 0; i < children; ++i) {
    names.text_at(node.number(8));
    const std::uint64_t child = node.address();
    if (level > 0)
      walk_symbol_tree(path, child, level, names, depth);
    else
      walk_symbol_node(path, child, names, depth);
  }
  names.text_at(node.number(8));
}

void Structure::walk_symbol_node(const std::string& path, std::uint64_t address, const Part& names, int depth) {
  Part node = read_own(address, 8 + 2 * leaf_k_ * 40);
  node.expect("SNOD");
  if (node.byte() != 1) refuse_kind(file_.where(), "has groups of a newer format");
  node.skip(1);
  const std::uint64_t symbols = node.number(2);
  if (symbols > 2 * leaf_k_) refuse_damage(file_.where(), fmt::format("the group {} is overfull", path));
  for (std::uint64_t i = 0; i < symbols; ++i) take_symbol(path, node, names, depth);
}

void Structure::take_symbol(const std::string& path, Part& entry, const Part& names, int depth) {
  const std::string name = path + "/" + names.text_at(entry.number(8));
  const std::uint64_t address = entry.address(), cached = entry.number(4);
  entry.skip(4);
  Part scratch = entry.part(16);
  if (cached > 2) refuse_damage(file_.where(), fmt::format("the entry {} is of no kind", name));
  if (cached == 2) return add(name, {Entry::Kind::soft, no_address, names.text_at(scratch.number(4))}, depth);
  const std::uint64_t tree = scratch.address();
  if (cached == 1 && SymbolTable{tree, scratch.address()} != symbol_table_of(header(address)))
    refuse_damage(file_.where(), fmt::format("the entry {} is not what its header says", name));
  add(name, {Entry::Kind::hard, address, {}}, depth);
}

void Structure::take_link(const std::string& path, Part message, int depth) {
  constexpr std::uint8_t has_kind = 8, has_order = 4, has_characters = 16;
  constexpr std::uint8_t hard = 0, soft = 1, external = 64;
  if (message.byte() != 1) refuse_kind(file_.where(), "has links of a newer format");
  const std::uint8_t flags = message.byte();
  const std::uint8_t kind = (flags & has_kind) != 0 ? message.byte() : hard;
  if ((flags & has_order) != 0) message.skip(8);
  if ((flags & has_characters) != 0) message.skip(1);
  Part text = message.part(message.number(std::size_t{1} << (flags & 3)));
  std::string name = path + "/";
  while (text.left() > 0) name += static_cast<char>(text.byte());
  if (kind == hard) return add(name, {Entry::Kind::hard, message.address(), {}}, depth);
  Part value = message.part(message.number(2));
  if (kind == soft) {
    std::string target;
    while (value.left() > 0) target += static_cast<char>(value.byte());
    return add(name, {Entry::Kind::soft, no_address, target}, depth);
  }
  if (kind != external) refuse_kind(file_.where(), fmt::format("has the link {} of another program's kind", name));
  value.skip(1);
  value.text();
  value.text();
  add(name, {}, depth);
}

void Structure::add(const std::string& path, Entry entry, int depth) {
  const std::string name = path.substr(path.rfind('/') + 1);
  if (name.empty() || name == "." || path.find('\0') != std::string::npos)
    refuse_damage(file_.where(), "an object has no name");
  const auto [added, fresh] = entries_.emplace(path, std::move(entry));
  if (!fresh) refuse_damage(file_.where(), fmt::format("two objects are called {}", path));
  if (added->second.kind == Entry::Kind::hard) walk_object(path, added->second.address, depth + 1);
}

const ObjectHeader* Structure::find(const std::string& name) const {
  std::vector<std::string> path, rest = split(name, '/');
  std::reverse(rest.begin(), rest.end());
  std::uint64_t address = root_;
  for (int soft_links = 0; !rest.empty();) {
    const std::string part = rest.back();
    rest.pop_back();
    if (part.empty() || part == ".") continue;
    path.push_back(part);
    const auto found = entries_.find(joined(path));
    if (found == entries_.end() || found->second.kind == Entry::Kind::outside) return nullptr;
    address = found->second.address;
    if (found->second.kind == Entry::Kind::hard) continue;
    if (++soft_links > most_soft_links) return nullptr;
    path.pop_back();
    if (found->second.target.starts_with('/')) path.clear();
    std::vector<std::string> target = split(found->second.target, '/');
    rest.insert(rest.end(), target.rbegin(), target.rend());
    const auto back = entries_.find(joined(path));
    address = back == entries_.end() ? root_ : back->second.address;
  }
  const auto object = objects_.find(address);
  return object == objects_.end() ? nullptr : &object->second;
}

bool Structure::is_dataset(const std::string& name) const {
  const ObjectHeader* found = find(name);
  return found != nullptr && found->is_dataset;
}

FilteredChunks Structure::check_object(const std::string& name) const {
  const std::string where = name == "/" ? file_.where() : fmt::format("{}: {}", file_.where(), name);
  const ObjectHeader* found = find(name);
  if (found == nullptr) refuse_damage(where, "no object of that name is found");
  return check_messages(file_, *found, chunk_k_, where);
}

}  // namespace fulmen::hdf5
