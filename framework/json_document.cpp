// The parser keeps the last of two equal keys, and nests as deep as memory allows; a callback sees both and refuses.
#include "framework/json_document.h"

#include <set>
#include <vector>

#include <fmt/format.h>

#include "framework/document_limits.h"
#include "framework/error.h"

namespace fulmen {

namespace {

using nlohmann::json;

constexpr const char* remedy = "the file is damaged or of another kind; get it anew";

class Watch {
 public:
  explicit Watch(const std::string& source) : source_(source) {}

  bool operator()(json::parse_event_t event, const json& parsed) {
    using Event = json::parse_event_t;
    switch (event) {
      case Event::object_start:
        keys_.emplace_back();
        open();
        break;
      case Event::array_start: open(); break;
      case Event::object_end:
        keys_.pop_back();
        --depth_;
        break;
      case Event::array_end: --depth_; break;
      case Event::value: count(); break;
      case Event::key: take_key(parsed.get<std::string>()); break;
    }
    return true;
  }

 private:
  void open() {
    count();
    if (++depth_ > deepest_nesting) refuse(fmt::format("nests objects and lists more than {} deep", deepest_nesting));
  }

  void count() {
    if (++values_ > most_values) refuse(fmt::format("holds more than {} values", most_values));
  }

  void take_key(const std::string& key) {
    if (!keys_.back().insert(key).second) refuse(fmt::format("the key '{}' comes twice", key));
  }

  [[noreturn]] void refuse(const std::string& what) const { throw UserError(source_, what, remedy); }

  const std::string& source_;
  std::vector<std::set<std::string>> keys_;  // of the objects that are open
  int depth_ = 0;
  std::int64_t values_ = 0;
};

}  // namespace

json parse_json_object(const std::string& text, const std::string& source) {
  if (text.size() > longest_document) {
    throw UserError(source, fmt::format("has {} bytes of JSON, at most {} are read", text.size(), longest_document),
                    remedy);
  }
  Watch watch(source);
  json document;
  try {
    document = json::parse(text, [&](int, json::parse_event_t event, json& parsed) { return watch(event, parsed); });
  } catch (const json::exception& error) {
    throw UserError(source, fmt::format("is not valid JSON: {}", error.what()), remedy);
  }
  if (!document.is_object()) throw UserError(source, "is not a JSON object", remedy);
  return document;
}

}  // namespace fulmen
