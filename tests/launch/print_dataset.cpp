// print_dataset FILE.h5 NAME: the values of a dataset as text, one per line, with all digits.
#include <cstdio>
#include <string>
#include <vector>

#include "framework/hdf5.h"

int main(int argc, char** argv) {
  using namespace fulmen;
  if (argc != 3) {
    std::fprintf(stderr, "usage: print_dataset FILE.h5 NAME\n");
    return 2;
  }
  try {
    const hdf5::File file = hdf5::File::open(argv[1]);
    const hdf5::Dataset dataset = file.dataset(argv[2]);
    std::vector<double> values(static_cast<std::size_t>(elements_of(dataset.shape())));
    dataset.read(std::vector<std::int64_t>(dataset.shape().size(), 0),
                 Tensor(values.data(), DType::fp64, dataset.shape()));
    for (const double value : values) std::printf("%.17g\n", value);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "print_dataset: %s\n", error.what());
    return 2;
  }
}
