// A dataset as any HDF5 program reads it, through the C library alone: virtual datasets, too, which fulmen::hdf5 never
// follows.
#pragma once

#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include <hdf5.h>

#include "framework/hdf5.h"
#include "framework/tensor.h"

namespace fulmen::testing_support {

struct WholeDataset {
  Shape shape;
  std::vector<double> values;
};

inline WholeDataset read_whole_dataset(const std::filesystem::path& path, const std::string& name) {
  const auto checked = [&](std::int64_t result) {
    if (result < 0) throw std::runtime_error(path.string() + ": " + name + " cannot be read");
    return result;
  };
  const hdf5::Handle file(checked(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT)), H5Fclose);
  const hdf5::Handle dataset(checked(H5Dopen2(file.id(), name.c_str(), H5P_DEFAULT)), H5Dclose);
  const hdf5::Handle space(checked(H5Dget_space(dataset.id())), H5Sclose);
  std::vector<hsize_t> dims(static_cast<std::size_t>(checked(H5Sget_simple_extent_ndims(space.id()))));
  if (!dims.empty()) checked(H5Sget_simple_extent_dims(space.id(), dims.data(), nullptr));
  WholeDataset whole;
  whole.shape.assign(dims.begin(), dims.end());
  whole.values.resize(static_cast<std::size_t>(elements_of(whole.shape)));
  checked(H5Dread(dataset.id(), H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, whole.values.data()));
  return whole;
}

}  // namespace fulmen::testing_support
