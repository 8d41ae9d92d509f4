// Files, datasets and attributes through the HDF5 C library, every call of it behind the lock and checked.
#include "framework/hdf5.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include <fmt/format.h>
#include <hdf5.h>

#include "framework/error.h"
#include "framework/hdf5_library.h"
#include "framework/hdf5_structure.h"
#include "framework/outside_files.h"
#include "framework/text.h"

namespace fulmen::hdf5 {

namespace fs = std::filesystem;

namespace {

// A strided view is a hyperslab of the enclosing array, whose extents are the ratios of neighbouring strides.
Handle memory_space(const Tensor& memory, const std::string& where) {
  if (memory.is_contiguous()) return simple_space({memory.elements()}, where);
  Shape counts;
  std::vector<std::int64_t> strides;
  for (int d = 0; d < memory.rank(); ++d) {
    if (memory.size(d) == 1) continue;  // its stride says nothing
    counts.push_back(memory.size(d));
    strides.push_back(memory.stride(d));
  }
  counts.push_back(1);
  strides.push_back(1);
  Shape enclosing{counts[0]};
  for (std::size_t d = 1; d < counts.size(); ++d) {
    FULMEN_CHECK(strides[d] > 0 && strides[d - 1] % strides[d] == 0, "{}: strides of {}", where, memory.describe());
    enclosing.push_back(strides[d - 1] / strides[d]);
    FULMEN_CHECK(counts[d] <= enclosing[d], "{}: overlapping elements in {}", where, memory.describe());
  }
  Handle space = simple_space(enclosing, where);
  select(space, std::vector<std::int64_t>(counts.size(), 0), counts, where);
  return space;
}

// The hyperslab that `memory` covers. A single element may come as any rank.
Shape covered(const Shape& stored, const std::vector<std::int64_t>& offset, const Tensor& memory,
              const std::string& where) {
  const bool one = memory.rank() != static_cast<int>(stored.size()) && memory.elements() == 1;
  Shape shape = one ? Shape(stored.size(), 1) : memory.shape();
  FULMEN_CHECK(memory.device().kind == DeviceKind::cpu, "{}: memory on a GPU", where);
  FULMEN_CHECK(shape.size() == stored.size() && offset.size() == stored.size(), "{}: {} at an offset of rank {} in {}",
               where, memory.describe(), offset.size(), to_string(stored));
  for (std::size_t d = 0; d < stored.size(); ++d) {
    if (offset[d] >= 0 && offset[d] + shape[d] <= stored[d]) continue;
    throw UserError(where,
                    fmt::format("has shape {}, but {} at offset {} is needed", to_string(stored), to_string(shape),
                                to_string(offset)),
                    restore);
  }
  return shape;
}

bool attribute_exists(hid_t object, const std::string& name, const std::string& where) {
  const htri_t found = H5Aexists(object, name.c_str());
  checked_call(found, where, fmt::format("its attribute '{}' cannot be looked up", name), restore);
  return found > 0;
}

void write_attribute_of(hid_t object, const std::string& name, hid_t type, const Handle& space, const void* data,
                        const std::string& where) {  // null data: no elements
  const std::string what = fmt::format("its attribute '{}' cannot be written", name);
  if (attribute_exists(object, name, where)) checked_call(H5Adelete(object, name.c_str()), where, what);
  const Handle attribute(
      checked(H5Acreate2(object, name.c_str(), type, space.id(), H5P_DEFAULT, H5P_DEFAULT), where, what), H5Aclose);
  if (data != nullptr) checked_call(H5Awrite(attribute.id(), type, data), where, what);
}

Handle open_attribute(hid_t object, const std::string& name, const std::string& where) {
  if (!attribute_exists(object, name, where)) {
    throw UserError(where, fmt::format("has no attribute '{}'", name), restore);
  }
  return Handle(checked(H5Aopen(object, name.c_str(), H5P_DEFAULT), where,
                        fmt::format("its attribute '{}' cannot be opened", name), restore),
                H5Aclose);
}

// Reads a numeric attribute into `values`, which is given its length.
template <class T>
void read_attribute_of(hid_t object, const std::string& name, const std::string& where, std::vector<T>& values) {
  const Handle attribute = open_attribute(object, name, where);
  const Handle type(checked(H5Aget_type(attribute.id()), where, "an attribute without a type", restore), H5Tclose);
  const H5T_class_t type_class = H5Tget_class(type.id());
  if (type_class != H5T_INTEGER && type_class != H5T_FLOAT) {
    throw UserError(where, fmt::format("its attribute '{}' is not a number", name), restore);
  }
  const Handle space(checked(H5Aget_space(attribute.id()), where, "an attribute without a size", restore), H5Sclose);
  constexpr hssize_t most_values = 1024;
  const hssize_t count = H5Sget_simple_extent_npoints(space.id());
  if (count < 0 || count > most_values) {
    throw UserError(where,
                    fmt::format("its attribute '{}' holds {} values, at most {} are read", name, count, most_values),
                    restore);
  }
  values.resize(static_cast<std::size_t>(count));
  if (values.empty()) return;
  checked_call(H5Aread(attribute.id(), memory_type(dtype_of<T>), values.data()), where,
               fmt::format("its attribute '{}' cannot be read", name), restore);
}

Handle file_access(const std::string& where) {
  Handle access = property_list(H5P_FILE_ACCESS);
  // Some parallel file systems have no locks; there HDF5 is to go on without.
  checked_call(H5Pset_file_locking(access.id(), true, true), where, "no property");
  // The form that every version reads, and that framework/hdf5_structure.h checks; newer libraries write another.
  checked_call(H5Pset_libver_bounds(access.id(), H5F_LIBVER_EARLIEST, H5F_LIBVER_LATEST), where, "no property");
  return access;
}

}  // namespace

Handle::Handle(Handle&& other) noexcept
    : id_(std::exchange(other.id_, -1)), close_(std::exchange(other.close_, nullptr)) {}

Handle& Handle::operator=(Handle&& other) noexcept {
  std::swap(id_, other.id_);
  std::swap(close_, other.close_);
  return *this;
}

Handle::~Handle() {
  if (id_ < 0) return;
  const Lock lock;
  close_(id_);
}

std::int64_t Handle::release() { return std::exchange(id_, -1); }

void Dataset::read(const std::vector<std::int64_t>& offset, const Tensor& memory) const {
  if (memory.elements() == 0) return;
  const Lock lock;
  const Shape shape = covered(shape_, offset, memory, where_);
  if (filtered_) filtered_->check(structure_->file(), offset, shape, where_);
  const Handle stored = simple_space(shape_, where_);
  select(stored, offset, shape, where_);
  const Handle space = memory_space(memory, where_);
  checked_call(H5Dread(handle_.id(), memory_type(memory.dtype()), space.id(), stored.id(), H5P_DEFAULT, memory.data()),
               where_, "cannot be read", "the file is damaged; " + std::string(restore));
}

void Dataset::write(const std::vector<std::int64_t>& offset, const Tensor& memory) {
  if (memory.elements() == 0) return;
  const Lock lock;
  const Shape shape = covered(shape_, offset, memory, where_);
  const Handle stored = simple_space(shape_, where_);
  select(stored, offset, shape, where_);
  const Handle space = memory_space(memory, where_);
  checked_call(H5Dwrite(handle_.id(), memory_type(memory.dtype()), space.id(), stored.id(), H5P_DEFAULT, memory.data()),
               where_, "cannot be written", "check the free space of the disk");
}

void Dataset::append(const Tensor& memory) {
  if (memory.elements() == 0) return;
  const Lock lock;
  FULMEN_CHECK(shape_.size() == 1 && memory.rank() == 1, "{}: append of {} to {}", where_, memory.describe(),
               to_string(shape_));
  const std::int64_t end = shape_[0];
  const hsize_t grown = static_cast<hsize_t>(end) + static_cast<hsize_t>(memory.elements());
  checked_call(H5Dset_extent(handle_.id(), &grown), where_, "cannot grow", "check the free space of the disk");
  shape_[0] = static_cast<std::int64_t>(grown);
  write({end}, memory);
}

bool Dataset::has_attribute(const std::string& name) const {
  const Lock lock;
  return attribute_exists(handle_.id(), name, where_);
}

std::vector<std::int64_t> Dataset::read_attribute(const std::string& name) const {
  const Lock lock;
  std::vector<std::int64_t> values;
  read_attribute_of(handle_.id(), name, where_, values);
  return values;
}

void Dataset::write_attribute(const std::string& name, const std::vector<std::int64_t>& values) {
  const Lock lock;
  const Handle space = simple_space({static_cast<std::int64_t>(values.size())}, where_);
  write_attribute_of(handle_.id(), name, H5T_NATIVE_INT64, space, values.data(), where_);
}

void Dataset::write_attribute(const std::string& name, const std::string& value) {
  const Lock lock;
  const Handle type(checked(H5Tcopy(H5T_C_S1), where_, "no text type"), H5Tclose);
  checked_call(H5Tset_size(type.id(), H5T_VARIABLE), where_, "no text type");
  checked_call(H5Tset_cset(type.id(), H5T_CSET_UTF8), where_, "no text type");
  const char* text = value.c_str();
  write_attribute_of(handle_.id(), name, type.id(), simple_space({}, where_), &text, where_);
}

void Dataset::close() {
  const Lock lock;
  checked_call(H5Dclose(handle_.release()), where_, "cannot be written", "check the free space of the disk");
}

File File::open(const fs::path& path) {
  const Lock lock;
  const std::string where = path.string();
  std::error_code error;
  if (!fs::exists(path, error)) throw UserError(where, "there is no such file", "check the path");
  require_regular_file(path);
  if (fs::file_size(path, error) == 0 && !error) throw UserError(where, "is empty: it was cut short", restore);
  auto structure = std::make_shared<const Structure>(path);
  const Handle access = file_access(where);
  const hid_t id = H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.id());
  if (id < 0) {
    throw UserError(where, fmt::format("cannot be opened as an HDF5 file (HDF5: {})", library_message()),
                    "check its permissions; if it is damaged, " + std::string(restore));
  }
  File file;
  file.handle_ = Handle(id, H5Fclose);
  file.path_ = path;
  file.structure_ = std::move(structure);
  return file;
}

File File::create(const fs::path& path) {
  const Lock lock;
  const Handle access = file_access(path.string());
  // Small datasets would stay in a buffer until they are closed, and be forgotten where that fails on a full disk.
  checked_call(H5Pset_sieve_buf_size(access.id(), 0), path.string(), "no property");
  File file;
  file.handle_ = Handle(checked(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.id()), path.string(),
                                "cannot be created", "check that the folder exists, is writable and has space"),
                        H5Fclose);
  file.path_ = path;
  return file;
}

FilteredChunks File::check_object(const std::string& name) const {
  return structure_ ? structure_->check_object(name) : FilteredChunks();
}

bool File::exists(const std::string& name) const {
  const Lock lock;
  return object_exists(handle_.id(), name, path_.string());
}

Dataset File::dataset(const std::string& name) const {
  const Lock lock;
  Dataset dataset;
  dataset.where_ = fmt::format("{}: {}", path_.string(), name);
  if (exists(name)) {
    FilteredChunks filtered = check_object(name);
    if (!filtered.empty()) {
      dataset.structure_ = structure_;
      dataset.filtered_ = std::make_shared<FilteredChunks>(std::move(filtered));
    }
  }
  OpenedDataset opened = open_dataset(handle_.id(), path_.string(), name, dataset.where_);
  if (opened.layout == H5D_VIRTUAL) {
    throw UserError(dataset.where_, "keeps its elements in other datasets (it is virtual), which are not read",
                    "put the data itself into the file");
  }
  dataset.handle_ = std::move(opened.handle);
  dataset.dtype_ = dtype_of_dataset(dataset.handle_, dataset.where_);
  dataset.shape_ = shape_of_dataset(dataset.handle_, dataset.where_);
  return dataset;
}

std::vector<std::string> File::dataset_names() const {
  const Lock lock;
  std::vector<std::string> links, names;
  const auto collect = [](hid_t, const char* name, const H5L_info_t*, void* data) -> herr_t {
    static_cast<std::vector<std::string>*>(data)->push_back(std::string("/") + name);
    return 0;
  };
  checked_call(H5Lvisit(handle_.id(), H5_INDEX_NAME, H5_ITER_INC, collect, &links), path_.string(), "cannot be listed",
               restore);
  const Handle access = closed_access(H5P_LINK_ACCESS);
  for (const std::string& link : links) {
    if (!object_exists(handle_.id(), link, path_.string())) continue;
    if (structure_) {
      if (structure_->is_dataset(link)) names.push_back(link);
      continue;
    }
    const Handle object(checked(H5Oopen(handle_.id(), link.c_str(), access.id()), path_.string(),
                                fmt::format("{} cannot be opened", link), restore),
                        H5Oclose);
    if (H5Iget_type(object.id()) == H5I_DATASET) names.push_back(link);
  }
  std::sort(names.begin(), names.end());
  return names;
}

Dataset File::create_dataset(const std::string& name, DType dtype, const Shape& shape) {
  const Lock lock;
  Dataset dataset;
  dataset.where_ = fmt::format("{}: {}", path_.string(), name);
  dataset.shape_ = shape;
  dataset.dtype_ = dtype;
  dataset.handle_ = create_in(handle_.id(), name, dtype, simple_space(shape, dataset.where_),
                              property_list(H5P_DATASET_CREATE), property_list(H5P_DATASET_ACCESS), dataset.where_);
  return dataset;
}

Dataset File::create_extendible(const std::string& name, DType dtype, std::int64_t chunk) {
  const Lock lock;
  FULMEN_CHECK(chunk > 0, "chunks of {} elements", chunk);
  Dataset dataset;
  dataset.where_ = fmt::format("{}: {}", path_.string(), name);
  dataset.shape_ = {0};
  dataset.dtype_ = dtype;
  const hsize_t length = 0, limit = H5S_UNLIMITED, chunk_length = static_cast<hsize_t>(chunk);
  const Handle space(checked(H5Screate_simple(1, &length, &limit), dataset.where_, "no dataspace"), H5Sclose);
  const Handle creation = property_list(H5P_DATASET_CREATE);
  checked_call(H5Pset_chunk(creation.id(), 1, &chunk_length), dataset.where_, "no chunks of that size");
  dataset.handle_ =
      create_in(handle_.id(), name, dtype, space, creation, property_list(H5P_DATASET_ACCESS), dataset.where_);
  return dataset;
}

bool File::has_attribute(const std::string& name) const {
  const Lock lock;
  check_object("/");
  return attribute_exists(handle_.id(), name, path_.string());
}

double File::read_number_attribute(const std::string& name) const {
  const Lock lock;
  check_object("/");
  std::vector<double> values;
  read_attribute_of(handle_.id(), name, path_.string(), values);
  if (values.size() != 1) {
    throw UserError(path_.string(), fmt::format("its attribute '{}' is not one number", name), restore);
  }
  return values[0];
}

void File::write_number_attribute(const std::string& name, double value) {
  const Lock lock;
  write_attribute_of(handle_.id(), name, H5T_NATIVE_DOUBLE, simple_space({}, path_.string()), &value, path_.string());
}

void File::flush() {
  const Lock lock;
  checked_call(H5Fflush(handle_.id(), H5F_SCOPE_LOCAL), path_.string(), "cannot be written",
               "check the free space of the disk");
}

void File::close() {
  const Lock lock;
  flush();
  checked_call(H5Fclose(handle_.release()), path_.string(), "cannot be closed", "check the free space of the disk");
}

}  // namespace fulmen::hdf5
