// JSON through nlohmann/json, with errors that name the file. A heavy header: include it in .cpp files only.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

namespace fulmen {

// Parses text that must be one object. Throws UserError naming `source` for malformed text (with its place), a key that
// comes twice in one object, anything but an object, and what is beyond framework/document_limits.h.
nlohmann::json parse_json_object(const std::string& text, const std::string& source);

}  // namespace fulmen
