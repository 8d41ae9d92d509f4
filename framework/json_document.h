// JSON through nlohmann/json, with errors that name the file. A heavy header: include it in .cpp files only.
#pragma once

#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace fulmen {

// Parses text that must be one object. Throws UserError naming `source` for malformed text (with its place), a key that
// comes twice in an object, and anything but an object. Also for text beyond framework/document_limits.h.
nlohmann::json parse_json_object(const std::string& text, const std::string& source);

// The text under a key of a JSON object, such as a line of a corpus, without keeping the rest. Depth and number of
// values are limited as above, the length is not. Throws UserError naming `source`: malformed text, anything but an
// object, no such key, the key twice, another value than text. `remedy` is the advice where it is an object of another
// kind.
std::string text_in_json_object(std::string_view text, const std::string& key, const std::string& source,
                                const std::string& remedy);

}  // namespace fulmen
