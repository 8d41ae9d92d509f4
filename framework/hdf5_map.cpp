// Maps of virtual datasets: written for any HDF5 program to read, read back without opening anything that they name.
#include <limits>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "framework/error.h"
#include "framework/hdf5.h"
#include "framework/hdf5_chunks.h"
#include "framework/hdf5_library.h"

namespace fulmen::hdf5 {

namespace {

Handle virtual_access(const std::string& where) {
  Handle access = property_list(H5P_DATASET_ACCESS);
  // Sources are looked for in the virtual file's folder, wherever it has been moved.
  checked_call(H5Pset_virtual_prefix(access.id(), "${ORIGIN}"), where, "no property");
  return access;
}

std::string without_percent(const std::string& name) {
  std::string escaped;  // HDF5 takes %b for the number of a block
  for (const char c : name) escaped += c == '%' ? std::string("%%") : std::string(1, c);
  return escaped;
}

// The reverse. Throws UserError for a name that stands for many.
std::string with_percent(const std::string& name, const std::string& where) {
  std::string plain;
  for (std::size_t i = 0; i < name.size(); ++i) {
    plain += name[i];
    if (name[i] != '%') continue;
    if (i + 1 == name.size() || name[i + 1] != '%') {
      throw UserError(where, fmt::format("is laid over '{}', a pattern of names", name), restore);
    }
    ++i;
  }
  return plain;
}

// The block that a selection consists of: its offset and shape. Throws UserError for any other selection.
std::pair<std::vector<std::int64_t>, Shape> block_of(const Handle& space, const Shape& extents,
                                                     const std::string& where) {
  const std::size_t rank = extents.size();
  std::vector<hsize_t> first(rank), last(rank);
  const bool bounded = H5Sget_select_type(space.id()) != H5S_SEL_NONE &&
                       H5Sget_select_bounds(space.id(), first.data(), last.data()) >= 0;
  std::vector<std::int64_t> offset(first.begin(), first.end());
  Shape shape(rank);
  bool inside = bounded;
  for (std::size_t d = 0; d < rank && inside; ++d) {
    inside = first[d] <= last[d] && last[d] < static_cast<hsize_t>(extents[d]);
    shape[d] = inside ? static_cast<std::int64_t>(last[d] - first[d]) + 1 : 0;
  }
  if (!inside || H5Sget_select_npoints(space.id()) != elements_of(shape)) {
    throw UserError(where, "is laid over something else than blocks of its own shape", restore);
  }
  return {std::move(offset), std::move(shape)};
}

template <class Get>
std::string name_in_map(const Handle& creation, std::size_t number, const std::string& where, Get get) {
  const ssize_t length = get(creation.id(), number, nullptr, 0);
  if (length < 0) fail(where, "a part of its map has no name", restore);
  std::string name(static_cast<std::size_t>(length), '\0');
  if (get(creation.id(), number, name.data(), name.size() + 1) != length)
    fail(where, "a part of its map has no name", restore);
  return with_percent(name, where);
}

VirtualSource source_in_map(const Handle& creation, std::size_t number, const Shape& whole, const std::string& where) {
  const Handle placed(checked(H5Pget_virtual_vspace(creation.id(), number), where, "its map cannot be read", restore),
                      H5Sclose);
  const Handle taken(checked(H5Pget_virtual_srcspace(creation.id(), number), where, "its map cannot be read", restore),
                     H5Sclose);
  VirtualSource source;
  std::tie(source.offset, source.shape) = block_of(placed, whole, where);
  if (H5Sget_select_type(taken.id()) != H5S_SEL_ALL) {
    const Shape held = extents_of(taken, where);
    if (held != source.shape || block_of(taken, held, where).second != held) {
      throw UserError(where, "is laid over parts of other datasets", restore);
    }
  }
  source.file = name_in_map(creation, number, where, H5Pget_virtual_filename);
  source.dataset = name_in_map(creation, number, where, H5Pget_virtual_dsetname);
  return source;
}

}  // namespace

VirtualMap File::virtual_map(const std::string& name) const {
  const Lock lock;
  const std::string where = fmt::format("{}: {}", path_.string(), name);
  if (exists(name)) check_object(name);
  const OpenedDataset opened = open_dataset(handle_.id(), path_.string(), name, where);
  if (opened.layout != H5D_VIRTUAL) throw UserError(where, "is not a virtual dataset", restore);
  std::size_t count = 0;
  checked_call(H5Pget_virtual_count(opened.creation.id(), &count), where, "its map cannot be read", restore);
  if (count == 0) throw UserError(where, "is laid over nothing", restore);
  // Asked for the shape of a dataset over others without end, the library would open those: the map tells it as well.
  const Handle first(checked(H5Pget_virtual_vspace(opened.creation.id(), 0), where, "its map cannot be read", restore),
                     H5Sclose);
  VirtualMap map{dtype_of_dataset(opened.handle, where), extents_of(first, where), {}};
  for (std::size_t i = 0; i < count; ++i) map.sources.push_back(source_in_map(opened.creation, i, map.shape, where));
  return map;
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

}  // namespace fulmen::hdf5
