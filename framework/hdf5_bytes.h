// Bytes of an HDF5 file for the check of its structure. Nothing is read beyond the end of the file, or of the part
// under inspection. For framework/hdf5_structure*.cpp only.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "framework/descriptor.h"

namespace fulmen::hdf5 {

constexpr std::uint64_t no_address = ~std::uint64_t{0};

// Throws UserError: a structure that no program writes, or that goes beyond the file.
[[noreturn]] void refuse_damage(const std::string& where, const std::string& what);
// The same for what the format knows and this program does not read.
[[noreturn]] void refuse_kind(const std::string& where, const std::string& what);

// A part of a file, read from its front. Numbers are little-endian.
class Part {
 public:
  Part(std::vector<unsigned char> bytes, const std::string& where) : bytes_(std::move(bytes)), where_(where) {}

  std::uint64_t number(std::size_t bytes);
  std::uint8_t byte() { return static_cast<std::uint8_t>(number(1)); }
  std::uint64_t address() { return number(8); }
  void skip(std::uint64_t bytes) { take(bytes); }
  // The bytes that follow, as a part of its own.
  Part part(std::uint64_t bytes) {
    const std::string_view taken = take(bytes);
    return Part({taken.begin(), taken.end()}, where_);
  }
  void expect(std::string_view signature);  // throws UserError when it does not follow
  std::string text();                       // up to a zero byte, which is taken, too
  std::string text_at(std::uint64_t offset) const;
  void go_to(std::uint64_t offset);
  void copy(void* target, std::uint64_t bytes);
  std::uint64_t left() const { return bytes_.size() - used_; }
  std::uint64_t size() const { return bytes_.size(); }
  std::uint64_t used() const { return used_; }
  const std::string& where() const { return where_; }

 private:
  std::string_view take(std::uint64_t bytes);

  std::vector<unsigned char> bytes_;
  std::string where_;
  std::uint64_t used_ = 0;
};

class FileBytes {
 public:
  // Throws UserError for what is no ordinary file.
  explicit FileBytes(const std::filesystem::path& path);

  const std::string& where() const { return where_; }
  std::uint64_t size() const { return size_; }
  // Throws UserError for what lies beyond the end of the file, or is longer than any part that describes others.
  Part read(std::uint64_t address, std::uint64_t bytes) const;
  void require_inside(std::uint64_t address, std::uint64_t bytes, const std::string& where) const;

 private:
  std::string where_;
  Descriptor file_;
  std::uint64_t size_ = 0;
};

}  // namespace fulmen::hdf5
