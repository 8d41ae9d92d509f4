// Between fulmen::hdf5 and the C library: its lock, its errors, and what both the files and the maps of virtual
// datasets need of it. For framework/hdf5*.cpp only.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include <hdf5.h>

#include "framework/hdf5.h"

namespace fulmen::hdf5 {

// Held during every call of the library. One thread may hold it more than once.
class Lock {
 public:
  Lock();

 private:
  static std::recursive_mutex& mutex();
  std::lock_guard<std::recursive_mutex> held_;
};

constexpr const char* restore = "restore the file, or make it anew";

// The innermost message of the library.
std::string library_message();
// Throws UserError with it.
[[noreturn]] void fail(const std::string& where, const std::string& what, const std::string& remedy = {});
// Passes an identifier on, or throws.
hid_t checked(hid_t id, const std::string& where, const std::string& what, const std::string& remedy = {});
void checked_call(herr_t result, const std::string& where, const std::string& what, const std::string& remedy = {});
Handle property_list(hid_t of_class);
// Access by which the library follows no link into another file.
Handle closed_access(hid_t of_class);
hid_t memory_type(DType dtype);
DType stored_dtype(hid_t type, const std::string& where);
inline std::vector<hsize_t> extents(const Shape& shape) { return {shape.begin(), shape.end()}; }
Handle simple_space(const Shape& shape, const std::string& where);
void select(const Handle& space, const std::vector<std::int64_t>& offset, const Shape& shape, const std::string& where);
// Extents of a dataspace. Throws UserError for more dimensions than a tensor has, and for sizes beyond counting.
Shape extents_of(const Handle& space, const std::string& where);
// Only what can be opened as an object exists: a link may dangle. Throws UserError for a link into another file.
bool object_exists(hid_t file, const std::string& name, const std::string& where);
// Parent groups are made as needed; no times are stored, so that equal content gives equal files.
Handle create_in(hid_t file, const std::string& name, DType dtype, const Handle& space, const Handle& creation,
                 const Handle& access, const std::string& where);

// A dataset and where its elements lie, before anything is asked of it that would have the library look there.
struct OpenedDataset {
  Handle handle;
  Handle creation;
  H5D_layout_t layout = H5D_LAYOUT_ERROR;
};

OpenedDataset open_dataset(hid_t file, const std::string& path, const std::string& name, const std::string& where);
DType dtype_of_dataset(const Handle& dataset, const std::string& where);
Shape shape_of_dataset(const Handle& dataset, const std::string& where);

}  // namespace fulmen::hdf5
