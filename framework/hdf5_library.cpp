// The lock, the errors and the opening of datasets. The library's own error printing is off; its innermost message is
// quoted in ours.
#include "framework/hdf5_library.h"

#include <algorithm>
#include <string_view>

#include <fmt/format.h>

#include "framework/error.h"
#include "framework/outside_numbers.h"
#include "framework/text.h"

namespace fulmen::hdf5 {

std::string library_message() {
  std::string message;
  const auto take_innermost = [](unsigned n, const H5E_error2_t* error, void* data) -> herr_t {
    if (n == 0 && error->desc != nullptr) *static_cast<std::string*>(data) = error->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_innermost, &message);
  // Only the reason of a failed system call is worth telling.
  constexpr std::string_view label = "error message = '";
  if (const std::size_t begin = message.find(label); begin != std::string::npos) {
    message.erase(0, begin + label.size());
    message.resize(std::min(message.find('\''), message.size()));
  }
  return message.empty() ? "no reason given" : message;
}

Lock::Lock() : held_(mutex()) {
  // A library built for threads keeps one error handler per thread.
  thread_local const bool quiet = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  FULMEN_CHECK(quiet, "HDF5 does not start");
}

std::recursive_mutex& Lock::mutex() {
  static std::recursive_mutex instance;
  // The library's own cleanup at exit crashes after a failed write; our handles close what is open anyway.
  static const bool once = (H5dont_atexit(), true);
  (void)once;
  return instance;
}

void fail(const std::string& where, const std::string& what, const std::string& remedy) {
  throw UserError(where, fmt::format("{} (HDF5: {})", what, library_message()), remedy);
}

hid_t checked(hid_t id, const std::string& where, const std::string& what, const std::string& remedy) {
  if (id < 0) fail(where, what, remedy);
  return id;
}

void checked_call(herr_t result, const std::string& where, const std::string& what, const std::string& remedy) {
  if (result < 0) fail(where, what, remedy);
}

Handle property_list(hid_t of_class) {
  return Handle(checked(H5Pcreate(of_class), "HDF5", "no property list"), H5Pclose);
}

Handle closed_access(hid_t of_class) {
  Handle access = property_list(of_class);
  const auto refuse = [](const char*, const char*, const char*, const char*, unsigned*, hid_t, void*) -> herr_t {
    return -1;
  };
  checked_call(H5Pset_elink_cb(access.id(), refuse, nullptr), "HDF5", "no property");
  return access;
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

Shape extents_of(const Handle& space, const std::string& where) {
  const int rank = H5Sget_simple_extent_ndims(space.id());
  checked_call(rank, where, "has no shape", restore);
  if (rank > max_tensor_rank) {
    throw UserError(where, fmt::format("has {} dimensions, at most {} are read", rank, max_tensor_rank), restore);
  }
  std::vector<hsize_t> dims(static_cast<std::size_t>(rank));
  if (rank > 0) {
    checked_call(H5Sget_simple_extent_dims(space.id(), dims.data(), nullptr), where, "has no shape", restore);
  }
  const Shape shape(dims.begin(), dims.end());
  if (!is_countable(shape)) {
    throw UserError(where, fmt::format("has the shape {}, which no file can hold", to_string(shape)), restore);
  }
  return shape;
}

bool object_exists(hid_t file, const std::string& name, const std::string& where) {
  const Handle access = closed_access(H5P_LINK_ACCESS);
  std::string path;
  for (const std::string& part : split(name, '/')) {
    if (part.empty()) continue;
    path += "/" + part;
    if (H5Lexists(file, path.c_str(), access.id()) <= 0) return false;
    H5L_info_t link;
    if (H5Lget_info(file, path.c_str(), &link, access.id()) < 0) return false;
    if (link.type != H5L_TYPE_HARD && link.type != H5L_TYPE_SOFT) {
      throw UserError(where, fmt::format("{} is a link into another file, which is not followed", path),
                      "put the data itself into the file");
    }
    if (H5Oexists_by_name(file, path.c_str(), access.id()) <= 0) return false;
  }
  return true;
}

Handle create_in(hid_t file, const std::string& name, DType dtype, const Handle& space, const Handle& creation,
                 const Handle& access, const std::string& where) {
  const Handle links = property_list(H5P_LINK_CREATE);
  checked_call(H5Pset_create_intermediate_group(links.id(), 1), where, "no parent groups");
  checked_call(H5Pset_obj_track_times(creation.id(), false), where, "no property");
  const hid_t id =
      H5Dcreate2(file, name.c_str(), memory_type(dtype), space.id(), links.id(), creation.id(), access.id());
  return Handle(checked(id, where, "cannot be created"), H5Dclose);
}

OpenedDataset open_dataset(hid_t file, const std::string& path, const std::string& name, const std::string& where) {
  if (!object_exists(file, name, path)) throw UserError(path, fmt::format("has no dataset {}", name), restore);
  OpenedDataset opened;
  opened.handle = Handle(checked(H5Dopen2(file, name.c_str(), closed_access(H5P_DATASET_ACCESS).id()), where,
                                 "cannot be opened as a dataset", restore),
                         H5Dclose);
  opened.creation = Handle(checked(H5Dget_create_plist(opened.handle.id()), where, "has no layout", restore), H5Pclose);
  opened.layout = H5Pget_layout(opened.creation.id());
  const int external = opened.layout == H5D_CONTIGUOUS ? H5Pget_external_count(opened.creation.id()) : 0;
  checked_call(external, where, "has no layout", restore);
  if (external > 0) {
    throw UserError(where, "keeps its elements in other files (external storage), which are not read",
                    "put the data itself into the file");
  }
  return opened;
}

DType dtype_of_dataset(const Handle& dataset, const std::string& where) {
  const Handle type(checked(H5Dget_type(dataset.id()), where, "has no type", restore), H5Tclose);
  return stored_dtype(type.id(), where);
}

Shape shape_of_dataset(const Handle& dataset, const std::string& where) {
  const Handle space(checked(H5Dget_space(dataset.id()), where, "has no shape", restore), H5Sclose);
  return extents_of(space, where);
}

}  // namespace fulmen::hdf5
