// Writing and finding the last line.
#include "framework/sealed_text.h"

#include <string_view>

#include <fmt/format.h>

#include "framework/error.h"
#include "framework/hash.h"

namespace fulmen {

namespace {

constexpr std::string_view key = "xxh3: ";

std::string last_line_of(std::string_view text) {
  Hasher hasher;
  hasher.update(text.data(), text.size());
  return fmt::format("{}\"{}\"\n", key, hasher.digest());
}

}  // namespace

std::string sealed(const std::string& text) {
  FULMEN_CHECK(text.ends_with('\n'), "a text without a line end");
  return text + last_line_of(text);
}

bool check_seal(const std::string& text, const std::string& source, const std::string& remedy) {
  if (text.size() < 2) return false;
  const std::size_t before = text.rfind('\n', text.size() - 2);  // the last line may want its end
  const std::size_t begin = before == std::string::npos ? 0 : before + 1;
  const std::string_view last = std::string_view(text).substr(begin);
  if (!last.starts_with(key)) return false;
  if (last == last_line_of(std::string_view(text).substr(0, begin))) return true;
  throw UserError(source, "its checksum, in its last line, does not fit its text: it was changed or damaged", remedy);
}

}  // namespace fulmen
