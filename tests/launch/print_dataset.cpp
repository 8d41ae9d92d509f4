// print_dataset FILE.h5 NAME: the values of a dataset as text, one per line, with all digits.
#include <cstdio>

#include "tests/framework/whole_dataset.h"

int main(int argc, char** argv) {
  using namespace fulmen;
  if (argc != 3) {
    std::fprintf(stderr, "usage: print_dataset FILE.h5 NAME\n");
    return 2;
  }
  try {
    for (const double value : testing_support::read_whole_dataset(argv[1], argv[2]).values)
      std::printf("%.17g\n", value);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "print_dataset: %s\n", error.what());
    return 2;
  }
}
