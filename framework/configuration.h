// A typed configuration: each key is declared once, bound to a field, with its range and its documentation. Reading a
// file, refusing what is wrong, echoing the resolved values and generating the reference all come from that
// declaration.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace fulmen {

template <class T>
struct Range {
  T least = std::numeric_limits<T>::lowest();
  T most = std::numeric_limits<T>::max();
};

// A word that a key may hold. A word that is not built yet is known, and refused with `missing` as the reason.
struct Choice {
  std::string name;
  std::string missing = {};
};

class Schema {
 public:
  struct Key {
    std::string name;           // dotted: "train.optimizer.lr"
    std::string type;           // "integer", "number", "true or false", "text", "one of a, b", "auto or integer", ...
    std::string allowed;        // "1 to 64", "" when anything goes
    std::string default_value;  // as YAML, "" when the key must be given
    std::string documentation;
    bool required = false;
    bool given = false;  // after parse(): the user set it
  };

  // Each binds `name` to a field whose present value is the default. Integers may be written as 20e9.
  void add(const std::string& name, std::int64_t& field, Range<std::int64_t> range, const std::string& documentation);
  void add(const std::string& name, double& field, Range<double> range, const std::string& documentation);
  void add(const std::string& name, bool& field, const std::string& documentation);
  void add(const std::string& name, std::string& field, const std::string& documentation);
  void add(const std::string& name, std::string& field, std::vector<Choice> choices, const std::string& documentation);
  void add(const std::string& name, std::vector<double>& field, std::size_t length, Range<double> range,
           const std::string& documentation);
  // "auto" (no value) or an integer; "auto" or a list of integers.
  void add(const std::string& name, std::optional<std::int64_t>& field, Range<std::int64_t> range,
           const std::string& documentation);
  void add(const std::string& name, std::optional<std::vector<std::int64_t>>& field, Range<std::int64_t> range,
           const std::string& documentation);
  // A list of words.
  void add(const std::string& name, std::vector<std::string>& field, std::vector<Choice> choices,
           const std::string& documentation);
  // Text that is a path: `~/` is the home folder (expand_home).
  void add_path(const std::string& name, std::string& field, const std::string& documentation);
  void require(const std::string& name);
  // Values of an integer key above `most` are in range but not built: refused with `reason`.
  void built_up_to(const std::string& name, std::int64_t most, const std::string& reason);
  // The same for a key that may only be false today.
  void built_only_false(const std::string& name, const std::string& reason);
  // A key of another schema, which the user may have meant: refused with `reason` rather than as
  // unknown.
  void refuse(const std::string& name, const std::string& reason);
  // Runs after reading: a check of one key's value that the types cannot say. Returns "" or what is wrong.
  void check(const std::string& name, std::function<std::string()> problem);

  // Reads YAML text (`source` names it in messages), then each "key=value" of `overrides`. Throws UserError: malformed
  // YAML (with line and column), an unknown key (with the nearest known key), a missing required key. Also for a value
  // of a wrong type, out of range, or not built yet.
  void parse(const std::string& text, const std::string& source, const std::vector<std::string>& overrides = {});
  // The same from what flat() wrote: dotted key -> value as YAML. Errors name the key alone.
  void parse(const std::map<std::string, std::string>& values);

  const std::vector<Key>& keys() const { return keys_; }
  bool given(const std::string& name) const;
  std::string resolved() const;                     // every key with its value, as nested YAML
  std::map<std::string, std::string> flat() const;  // dotted key -> value as YAML
  std::string markdown() const;                     // the reference: a table per section, each under its title
  std::string table() const;                        // the same of all keys in one table

 private:
  struct Binding;
  class Reader;
  std::size_t position(const std::string& name) const;
  void add_binding(Key key, std::shared_ptr<Binding> binding);
  void begin_reading(const std::string& source);
  void finish_reading(const std::string& source) const;
  std::vector<Key> keys_;
  std::vector<std::shared_ptr<Binding>> bindings_;
  std::map<std::string, std::string> refused_;  // keys of other schemas -> why they are not of this schema
};

// The word that YAML text and the "key=value" overrides give to a key, the last of them; "" when none does. For a key
// that decides which others there are, before the schema is made.
std::string given_word(const std::string& name, const std::string& text, const std::string& source,
                       const std::vector<std::string>& overrides);

// Reads nested YAML of scalars and lists into dotted keys. For reading back what resolved() wrote.
std::map<std::string, std::string> flatten_yaml(const std::string& text, const std::string& source);

}  // namespace fulmen
