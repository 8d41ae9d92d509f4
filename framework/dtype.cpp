// Sizes and names of element types.
#include "framework/dtype.h"

#include <array>

namespace fulmen {

namespace {

struct Properties {
  std::string_view name;
  std::size_t size;
  bool floating;
};

// In the order of the enumeration.
constexpr std::array<Properties, 10> table{{{"fp64", 8, true},
                                            {"fp32", 4, true},
                                            {"bf16", 2, true},
                                            {"fp16", 2, true},
                                            {"int64", 8, false},
                                            {"int32", 4, false},
                                            {"uint64", 8, false},
                                            {"uint32", 4, false},
                                            {"uint16", 2, false},
                                            {"uint8", 1, false}}};

constexpr const Properties& properties(DType dtype) { return table[static_cast<std::size_t>(dtype)]; }
static_assert(properties(DType::fp64).name == "fp64" && properties(DType::uint8).name == "uint8");

}  // namespace

std::size_t size_of(DType dtype) { return properties(dtype).size; }

std::string_view name_of(DType dtype) { return properties(dtype).name; }

bool is_floating(DType dtype) { return properties(dtype).floating; }

DType parse_dtype(std::string_view name) {
  for (std::size_t i = 0; i < table.size(); ++i) {
    if (table[i].name == name) return static_cast<DType>(i);
  }
  throw InternalError(fmt::format("no dtype is called '{}'", name));
}

}  // namespace fulmen
