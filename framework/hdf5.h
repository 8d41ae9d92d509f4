// Thin RAII over the HDF5 C library. Every call is checked; an error names the file and the object. All calls in a
// process are serialised by one lock, since the library may have been built without threads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "framework/dtype.h"
#include "framework/tensor.h"

namespace fulmen::hdf5 {

// An open HDF5 identifier of any kind; closes itself. Move-only.
class Handle {
 public:
  Handle() = default;
  Handle(std::int64_t id, int (*close)(std::int64_t)) : id_(id), close_(close) {}
  Handle(Handle&& other) noexcept;
  Handle& operator=(Handle&& other) noexcept;
  ~Handle();
  std::int64_t id() const { return id_; }
  std::int64_t release();  // gives the identifier up, unclosed

 private:
  std::int64_t id_ = -1;
  int (*close_)(std::int64_t) = nullptr;
};

class Structure;
class FilteredChunks;

class Dataset {
 public:
  const Shape& shape() const { return shape_; }
  // The stored element type.
  DType dtype() const { return dtype_; }
  // Reads or writes the hyperslab [offset, offset + memory.shape()), converting between stored and memory dtypes.
  // `memory` may be strided in its leading dimensions; its rank is the dataset's (rank 0 is taken as one element).
  void read(const std::vector<std::int64_t>& offset, const Tensor& memory) const;
  void write(const std::vector<std::int64_t>& offset, const Tensor& memory);
  // Grows a chunked 1-D dataset and writes at its end.
  void append(const Tensor& memory);

  bool has_attribute(const std::string& name) const;
  std::vector<std::int64_t> read_attribute(const std::string& name) const;
  void write_attribute(const std::string& name, const std::vector<std::int64_t>& values);
  void write_attribute(const std::string& name, const std::string& value);
  // Closes with a check, after which it cannot be used; the destructor closes unchecked. Data that the library still
  // holds of a dataset that can be appended to is written here.
  void close();

 private:
  friend class File;
  Handle handle_;
  Shape shape_;
  DType dtype_ = DType::fp32;
  std::string where_;                           // "<file>: <dataset>", for messages
  std::shared_ptr<const Structure> structure_;  // of the file, where chunks are filtered
  std::shared_ptr<FilteredChunks> filtered_;    // to be unpacked before the library does
};

// A source of a virtual dataset: `dataset` in `file`, relative to the folder of the virtual file. The whole of it is
// placed at `offset`.
struct VirtualSource {
  std::string file;
  std::string dataset;
  Shape shape;
  std::vector<std::int64_t> offset;
};

// The description of a virtual dataset.
struct VirtualMap {
  DType dtype = DType::fp32;
  Shape shape;
  std::vector<VirtualSource> sources;
};

class File {
 public:
  // Throws UserError when the file is missing, truncated, not HDF5, or of a structure that the library must not be
  // shown (framework/hdf5_structure.h).
  static File open(const std::filesystem::path& path);
  // Throws UserError when it cannot be written.
  static File create(const std::filesystem::path& path);

  bool exists(const std::string& name) const;
  // Throws UserError when it is missing, when its elements are of none of the types of DType, and when they lie outside
  // this file. Virtual datasets, external storage and external links are not followed.
  Dataset dataset(const std::string& name) const;
  // Reads the map of a virtual dataset, and nothing that it names. Throws UserError when it is missing, not virtual, or
  // maps anything but whole sources.
  VirtualMap virtual_map(const std::string& name) const;
  // Names of all datasets, with their groups ("/parameters/x"), in alphabetical order. Throws UserError when a link
  // leads out of the file.
  std::vector<std::string> dataset_names() const;
  // Creates parent groups as needed.
  Dataset create_dataset(const std::string& name, DType dtype, const Shape& shape);
  // A 1-D dataset of length 0 that can be appended to.
  Dataset create_extendible(const std::string& name, DType dtype, std::int64_t chunk);
  // A virtual dataset over pieces in other files, for other programs to read and for virtual_map(). Elements that no
  // piece covers, and a piece whose file is missing, read as NaN there.
  void create_virtual(const std::string& name, DType dtype, const Shape& shape,
                      const std::vector<VirtualSource>& sources);

  // Attributes of the root group.
  bool has_attribute(const std::string& name) const;
  double read_number_attribute(const std::string& name) const;
  void write_number_attribute(const std::string& name, double value);

  void flush();
  // Closes with a check; the destructor closes unchecked.
  void close();
  const std::filesystem::path& path() const { return path_; }

 private:
  // Checks the part of the file that the library is about to look at. Throws UserError. Returns the filtered chunks of
  // a dataset, which are to be checked when they are read.
  FilteredChunks check_object(const std::string& name) const;

  Handle handle_;
  std::filesystem::path path_;
  std::shared_ptr<const Structure> structure_;  // of a file that was opened, not of our own making
};

}  // namespace fulmen::hdf5
