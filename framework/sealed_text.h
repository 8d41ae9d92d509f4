// Manifests that carry their own checksum, so that no digit of them changes unnoticed.
#pragma once

#include <string>

namespace fulmen {

// The text with a last line `xxh3: "0123456789abcdef"`: the checksum of all bytes before that line. The text is YAML of
// keys at the left margin and ends with a line end.
std::string sealed(const std::string& text);

// Whether the last line is such a checksum. Throws UserError naming `source` when it is, and does not fit the text;
// `remedy` is what to do then.
bool check_seal(const std::string& text, const std::string& source, const std::string& remedy);

}  // namespace fulmen
