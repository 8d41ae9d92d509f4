// Flags of one command: declared with their documentation, parsed with clear errors.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace fulmen {

class CommandLine {
 public:
  // `usage` is what follows "fulmen " on the usage line; `example` is a whole command that works.
  CommandLine(std::string usage, std::string summary, std::string example);
  CommandLine(CommandLine&&) noexcept;
  ~CommandLine();

  void flag(const std::string& name, const std::string& documentation);
  void option(const std::string& name, const std::string& documentation, bool required = false);
  void list(const std::string& name, const std::string& documentation,
            bool required = false);                                            // takes all that follows
  void repeatable(const std::string& name, const std::string& documentation);  // one value each time
  void positional(const std::string& name, const std::string& documentation);  // one, required

  // False when --help was asked for, and printed. Throws UserError for an unknown flag (naming the nearest), a missing
  // or repeated flag, or a stray argument.
  bool parse(const std::vector<std::string>& arguments);

  bool has(const std::string& name) const;
  std::string text(const std::string& name, const std::string& otherwise = {}) const;
  std::vector<std::string> texts(const std::string& name) const;
  // The same for paths: `~/` is the home folder, also where the shell leaves it (--output=~/corpus). Throws UserError
  // for a home folder that is not known.
  std::string path(const std::string& name, const std::string& otherwise = {}) const;
  std::vector<std::string> paths(const std::string& name) const;
  // Throws UserError when the value is not a number within the bounds.
  std::int64_t integer(const std::string& name, std::int64_t otherwise, std::int64_t least, std::int64_t most) const;
  double number(const std::string& name, double otherwise, double least, double most) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fulmen
