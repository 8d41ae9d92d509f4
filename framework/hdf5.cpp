// The HDF5 C library behind its lock. The library's own error printing is off; its innermost message is quoted in ours.
#include "framework/hdf5.h"

#include <algorithm>
#include <limits>
#include <mutex>
#include <system_error>
#include <utility>

#include <fmt/format.h>
#include <hdf5.h>

#include "framework/error.h"
#include "framework/text.h"

namespace fulmen::hdf5 {

namespace fs = std::filesystem;

namespace {

// Held during every call of the library. One thread may hold it more than once.
class Lock {
 public:
  Lock() : held_(mutex()) {
    // A library built for threads keeps one error handler per thread.
    thread_local const bool quiet = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
    FULMEN_CHECK(quiet, "HDF5 does not start");
  }

 private:
  static std::recursive_mutex& mutex() {
    static std::recursive_mutex instance;
    // The library's own cleanup at exit crashes after a failed write; our handles close what is open anyway.
    static const bool once = (H5dont_atexit(), true);
    (void)once;
    return instance;
  }
  std::lock_guard<std::recursive_mutex> held_;
};

std::string library_message() {
  std::string message;
  const auto take_innermost = [](unsigned n, const H5E_error2_t* error, void* data) -> herr_t {
    if (n == 0 && error->desc != nullptr) *static_cast<std::string*>(data) = error->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_innermost, &message);
  // Of a failed system call only the reason is worth telling.
  constexpr std::string_view label = "error message = '";
  if (const std::size_t begin = message.find(label); begin != std::string::npos) {
    message.erase(0, begin + label.size());
    message.resize(std::min(message.find('\''), message.size()));
  }
  return message.empty() ? "no reason given" : message;
}

constexpr const char* restore = "restore the file, or make it anew";

[[noreturn]] void fail(const std::string& where, const std::string& what, const std::string& remedy = {}) {
  throw UserError(where, fmt::format("{} (HDF5: {})", what, library_message()), remedy);
}

// Passes an identifier on, or throws.
hid_t checked(hid_t id, const std::string& where, const std::string& what, const std::string& remedy = {}) {
  if (id < 0) fail(where, what, remedy);
  return id;
}

void checked_call(herr_t result, const std::string& where, const std::string& what, const std::string& remedy = {}) {
  if (result < 0) fail(where, what, remedy);
}

Handle property_list(hid_t of_class) {
  return Handle(checked(H5Pcreate(of_class), "HDF5", "no property list"), H5Pclose);
}

hid_t memory_type(DType dtype) {
  switch (dtype) {
    case DType::fp64: return H5T_NATIVE_DOUBLE;
    case DType::fp32: return H5T_NATIVE_FLOAT;
    case DType::int64: return H5T_NATIVE_INT64;
    case DType::int32: return H5T_NATIVE_INT32;
    case DType::uint64: return H5T_NATIVE_UINT64;
    case DType::uint32: return H5T_NATIVE_UINT32;
    case DType::uint16: return H5T_NATIVE_UINT16;
    case DType::uint8: return H5T_NATIVE_UINT8;
    case DType::bf16:
    case DType::fp16: break;
  }
  throw InternalError(fmt::format("HDF5 files do not hold {}", name_of(dtype)));
}

DType stored_dtype(hid_t type, const std::string& where) {
  const std::size_t size = H5Tget_size(type);
  const H5T_class_t type_class = H5Tget_class(type);
  if (type_class == H5T_FLOAT && size == 8) return DType::fp64;
  if (type_class == H5T_FLOAT && size == 4) return DType::fp32;
  if (type_class == H5T_INTEGER && H5Tget_sign(type) == H5T_SGN_2) {
    if (size == 8) return DType::int64;
    if (size == 4) return DType::int32;
  } else if (type_class == H5T_INTEGER) {
    if (size == 8) return DType::uint64;
    if (size == 4) return DType::uint32;
    if (size == 2) return DType::uint16;
    if (size == 1) return DType::uint8;
  }
  throw UserError(where, "holds elements of a type that is not read here",
                  "store it as 32- or 64-bit floating-point numbers or integers, or unsigned 16- or 8-bit integers");
}

std::vector<hsize_t> extents(const Shape& shape) { return {shape.begin(), shape.end()}; }

Handle simple_space(const Shape& shape, const std::string& where) {
  const auto dims = extents(shape);
  const hid_t id =
      shape.empty() ? H5Screate(H5S_SCALAR) : H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr);
  return Handle(checked(id, where, "no dataspace"), H5Sclose);
}

void select(const Handle& space, const std::vector<std::int64_t>& offset, const Shape& shape,
            const std::string& where) {
  if (shape.empty()) return;
  const auto start = extents(offset), count = extents(shape);
  checked_call(H5Sselect_hyperslab(space.id(), H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr), where,
               "no such hyperslab");
}

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
  const Shape shape = one ? Shape(stored.size(), 1) : memory.shape();
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

// Only what can be opened as an object exists: a link may dangle.
bool object_exists(hid_t file, const std::string& name) {
  std::string path;
  for (const std::string& part : split(name, '/')) {
    if (part.empty()) continue;
    path += "/" + part;
    if (H5Lexists(file, path.c_str(), H5P_DEFAULT) <= 0) return false;
    if (H5Oexists_by_name(file, path.c_str(), H5P_DEFAULT) <= 0) return false;
  }
  return true;
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
  values.resize(static_cast<std::size_t>(H5Sget_simple_extent_npoints(space.id())));
  if (values.empty()) return;
  checked_call(H5Aread(attribute.id(), memory_type(dtype_of<T>), values.data()), where,
               fmt::format("its attribute '{}' cannot be read", name), restore);
}

// Parent groups are made as needed; no times are stored, so that equal content gives equal files.
Handle create_in(hid_t file, const std::string& name, DType dtype, const Handle& space, const Handle& creation,
                 const Handle& access, const std::string& where) {
  const Handle links = property_list(H5P_LINK_CREATE);
  checked_call(H5Pset_create_intermediate_group(links.id(), 1), where, "no parent groups");
  checked_call(H5Pset_obj_track_times(creation.id(), false), where, "no property");
  const hid_t id =
      H5Dcreate2(file, name.c_str(), memory_type(dtype), space.id(), links.id(), creation.id(), access.id());
  return Handle(checked(id, where, "cannot be created"), H5Dclose);
}

Handle virtual_access(const std::string& where) {
  Handle access = property_list(H5P_DATASET_ACCESS);
  // Sources are looked for beside the virtual file, wherever it has been moved.
  checked_call(H5Pset_virtual_prefix(access.id(), "${ORIGIN}"), where, "no property");
  return access;
}

Handle file_access(const std::string& where) {
  Handle access = property_list(H5P_FILE_ACCESS);
  // Some parallel file systems have no locks; there HDF5 is to go on without.
  checked_call(H5Pset_file_locking(access.id(), true, true), where, "no property");
  return access;
}

std::string without_percent(const std::string& name) {
  std::string escaped;  // HDF5 takes %b for the number of a block
  for (const char c : name) escaped += c == '%' ? std::string("%%") : std::string(1, c);
  return escaped;
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
  const hsize_t grown = static_cast<hsize_t>(end + memory.elements());
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
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) throw UserError(where, "there is no such file", "check the path");
  if (!fs::is_regular_file(status)) throw UserError(where, "is not a file", "check the path");
  if (fs::file_size(path, error) == 0 && !error) throw UserError(where, "is empty: it was cut short", restore);
  const Handle access = file_access(where);
  const hid_t id = H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.id());
  if (id < 0) {
    const std::string why = library_message();
    const std::string detail = fmt::format(" (HDF5: {})", why);
    if (why.find("truncated") != std::string::npos) throw UserError(where, "the file is truncated" + detail, restore);
    if (why.find("signature") != std::string::npos) {
      throw UserError(where, "is not an HDF5 file" + detail, "check the path");
    }
    throw UserError(where, "cannot be opened as an HDF5 file" + detail,
                    "check its permissions; if it is damaged, " + std::string(restore));
  }
  File file;
  file.handle_ = Handle(id, H5Fclose);
  file.path_ = path;
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

bool File::exists(const std::string& name) const {
  const Lock lock;
  return object_exists(handle_.id(), name);
}

Dataset File::dataset(const std::string& name) const {
  const Lock lock;
  if (!object_exists(handle_.id(), name)) {
    throw UserError(path_.string(), fmt::format("has no dataset {}", name), restore);
  }
  Dataset dataset;
  dataset.where_ = fmt::format("{}: {}", path_.string(), name);
  const Handle access = virtual_access(dataset.where_);
  dataset.handle_ = Handle(checked(H5Dopen2(handle_.id(), name.c_str(), access.id()), dataset.where_,
                                   "cannot be opened as a dataset", restore),
                           H5Dclose);
  const Handle type(checked(H5Dget_type(dataset.handle_.id()), dataset.where_, "has no type", restore), H5Tclose);
  dataset.dtype_ = stored_dtype(type.id(), dataset.where_);
  const Handle space(checked(H5Dget_space(dataset.handle_.id()), dataset.where_, "has no shape", restore), H5Sclose);
  const int rank = H5Sget_simple_extent_ndims(space.id());
  checked_call(rank, dataset.where_, "has no shape", restore);
  std::vector<hsize_t> dims(static_cast<std::size_t>(rank));
  if (rank > 0) {
    checked_call(H5Sget_simple_extent_dims(space.id(), dims.data(), nullptr), dataset.where_, "has no shape", restore);
  }
  dataset.shape_.assign(dims.begin(), dims.end());
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
  for (const std::string& link : links) {
    if (!object_exists(handle_.id(), link)) continue;
    const Handle object(checked(H5Oopen(handle_.id(), link.c_str(), H5P_DEFAULT), path_.string(),
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

void File::create_virtual(const std::string& name, DType dtype, const Shape& shape,
                          const std::vector<VirtualSource>& sources) {
  const Lock lock;
  const std::string where = fmt::format("{}: {}", path_.string(), name);
  FULMEN_CHECK(!shape.empty(), "{}: a virtual dataset has at least one dimension", where);
  const Handle creation = property_list(H5P_DATASET_CREATE);
  if (is_floating(dtype)) {
    const double fill = std::numeric_limits<double>::quiet_NaN();
    checked_call(H5Pset_fill_value(creation.id(), H5T_NATIVE_DOUBLE, &fill), where, "no fill value");
  }
  const Handle space = simple_space(shape, where);
  for (const VirtualSource& source : sources) {
    if (elements_of(source.shape) == 0) continue;
    FULMEN_CHECK(source.shape.size() == shape.size() && source.offset.size() == shape.size(), "{}: piece {} of {}",
                 where, to_string(source.shape), to_string(shape));
    select(space, source.offset, source.shape, where);
    checked_call(H5Pset_virtual(creation.id(), space.id(), without_percent(source.file).c_str(),
                                without_percent(source.dataset).c_str(), simple_space(source.shape, where).id()),
                 where, fmt::format("cannot be laid over {} in {}", source.dataset, source.file));
  }
  checked_call(H5Sselect_all(space.id()), where, "no selection");
  create_in(handle_.id(), name, dtype, space, creation, virtual_access(where), where);
}

bool File::has_attribute(const std::string& name) const {
  const Lock lock;
  return attribute_exists(handle_.id(), name, path_.string());
}

double File::read_number_attribute(const std::string& name) const {
  const Lock lock;
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
