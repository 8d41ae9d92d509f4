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

// Takes the text of a single key out of an object that is not kept.
class TextFinder : public nlohmann::json_sax<json> {
 public:
  TextFinder(const std::string& wanted, const std::string& source) : wanted_(wanted), source_(source) {}

  bool null() override { return value(); }
  bool boolean(bool) override { return value(); }
  bool number_integer(number_integer_t) override { return value(); }
  bool number_unsigned(number_unsigned_t) override { return value(); }
  bool number_float(number_float_t, const string_t&) override { return value(); }
  bool binary(binary_t&) override { return value(); }
  bool string(string_t& text) override {
    if (at_key_) {
      found_ = std::move(text);
      has_text_ = true;
    }
    return value();
  }
  bool start_object(std::size_t) override {
    is_object_ = is_object_ || depth_ == 0;
    return open();
  }
  bool start_array(std::size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    at_key_ = depth_ == 1 && name == wanted_;
    if (at_key_ && ++times_ > 1) throw UserError(source_, fmt::format("the key '{}' comes twice", wanted_), remedy);
    return true;
  }
  bool parse_error(std::size_t byte, const std::string&, const nlohmann::detail::exception&) override {
    throw UserError(source_, fmt::format("malformed JSON at byte {} of the line", byte),
                    "correct the line, or leave it out");
  }

  std::string take(const std::string& advice) {
    if (!is_object_) throw UserError(source_, "is not a JSON object", advice);
    if (times_ == 0) throw UserError(source_, fmt::format("has no key '{}'", wanted_), advice);
    if (!has_text_) throw UserError(source_, fmt::format("the value of '{}' is not text", wanted_), advice);
    return std::move(found_);
  }

 private:
  bool value() {
    at_key_ = false;
    if (++values_ > most_values)
      throw UserError(source_, fmt::format("holds more than {} values", most_values), remedy);
    return true;
  }
  bool open() {
    if (++depth_ > deepest_nesting)
      throw UserError(source_, fmt::format("nests objects and lists more than {} deep", deepest_nesting), remedy);
    return value();
  }
  bool close() {
    --depth_;
    return true;
  }

  const std::string& wanted_;
  const std::string& source_;
  std::string found_;
  bool is_object_ = false, at_key_ = false, has_text_ = false;
  int depth_ = 0, times_ = 0;
  std::int64_t values_ = 0;
};

}  // namespace

std::string text_in_json_object(std::string_view text, const std::string& key, const std::string& source,
                                const std::string& remedy) {
  TextFinder finder(key, source);
  json::sax_parse(text, &finder);
  return finder.take(remedy);
}

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
