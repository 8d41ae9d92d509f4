// The parser keeps the last of two equal keys; a callback sees both and refuses.
#include "infer/json_document.h"

#include <set>
#include <vector>

#include <fmt/format.h>

#include "framework/error.h"

namespace fulmen {

namespace {

constexpr const char* remedy = "the file is damaged or of another kind; get it anew";

}  // namespace

nlohmann::json parse_json_object(const std::string& text, const std::string& source) {
  using nlohmann::json;
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto watch = [&](int, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second) {
      throw UserError(source, fmt::format("the key '{}' comes twice", parsed.get<std::string>()), remedy);
    }
    return true;
  };
  json document;
  try {
    document = json::parse(text, watch);
  } catch (const json::exception& error) {
    throw UserError(source, fmt::format("is not valid JSON: {}", error.what()), remedy);
  }
  if (!document.is_object()) throw UserError(source, "is not a JSON object", remedy);
  return document;
}

}  // namespace fulmen
