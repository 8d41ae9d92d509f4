// Flags of one command, over Boost.Program_options.
#include "launch/command_line.h"

#include <charconv>
#include <iostream>
#include <sstream>

#include <boost/program_options.hpp>

#include "framework/error.h"
#include "framework/files.h"
#include "framework/text.h"

namespace fulmen {

namespace options = boost::program_options;

struct CommandLine::State {
  std::string usage, summary, example;
  options::options_description visible{"options"};
  options::options_description hidden;
  options::positional_options_description positional;
  options::variables_map values;
  std::vector<std::string> names = {"help"};
  std::vector<std::string> required;
  std::string positional_name;
};

CommandLine::CommandLine(std::string usage, std::string summary, std::string example)
    : state_(std::make_unique<State>()) {
  state_->usage = std::move(usage);
  state_->summary = std::move(summary);
  state_->example = std::move(example);
  state_->visible.add_options()("help", "show this and an example");
}

CommandLine::CommandLine(CommandLine&&) noexcept = default;
CommandLine::~CommandLine() = default;

void CommandLine::flag(const std::string& name, const std::string& documentation) {
  state_->visible.add_options()(name.c_str(), documentation.c_str());
  state_->names.push_back(name);
}

void CommandLine::option(const std::string& name, const std::string& documentation, bool required) {
  state_->visible.add_options()(name.c_str(), options::value<std::string>()->value_name("VALUE"),
                                documentation.c_str());
  state_->names.push_back(name);
  if (required) state_->required.push_back(name);
}

void CommandLine::list(const std::string& name, const std::string& documentation, bool required) {
  state_->visible.add_options()(name.c_str(),
                                options::value<std::vector<std::string>>()->value_name("VALUE...")->multitoken(),
                                documentation.c_str());
  state_->names.push_back(name);
  if (required) state_->required.push_back(name);
}

void CommandLine::repeatable(const std::string& name, const std::string& documentation) {
  state_->visible.add_options()(name.c_str(), options::value<std::vector<std::string>>()->value_name("VALUE"),
                                documentation.c_str());
  state_->names.push_back(name);
}

void CommandLine::positional(const std::string& name, const std::string& documentation) {
  state_->hidden.add_options()(name.c_str(), options::value<std::string>(), documentation.c_str());
  state_->positional.add(name.c_str(), 1);
  state_->positional_name = name;
}

bool CommandLine::parse(const std::vector<std::string>& arguments) {
  const std::string help_hint = "fulmen " + split(state_->usage, ' ').front() + " --help lists the flags";
  options::options_description all;
  all.add(state_->visible).add(state_->hidden);
  try {
    constexpr int style = options::command_line_style::unix_style & ~options::command_line_style::allow_guessing;
    options::store(
        options::command_line_parser(arguments).options(all).positional(state_->positional).style(style).run(),
        state_->values);
  } catch (const options::unknown_option& error) {
    const std::string name = error.get_option_name();
    const std::string bare = name.substr(std::min(name.find_first_not_of('-'), name.size()));
    const std::string nearest = nearest_name(bare, state_->names);
    throw UserError(name, "is not a flag of this command",
                    nearest.empty() ? help_hint : "did you mean --" + nearest + "?");
  } catch (const options::too_many_positional_options_error&) {
    throw UserError("command line", "too many arguments", help_hint);
  } catch (const options::error& error) {
    throw UserError("command line", error.what(), help_hint);
  }
  if (state_->values.count("help") > 0) {
    std::ostringstream text;
    text << "usage: fulmen " << state_->usage << "\n\n"
         << state_->summary << "\n\n"
         << state_->visible << "\nexample:\n  " << state_->example << "\n";
    std::cout << text.str();
    return false;
  }
  for (const std::string& name : state_->required)
    if (state_->values.count(name) == 0) throw UserError("--" + name, "is missing", help_hint);
  if (!state_->positional_name.empty() && state_->values.count(state_->positional_name) == 0)
    throw UserError(state_->positional_name, "is missing", "usage: fulmen " + state_->usage);
  return true;
}

bool CommandLine::has(const std::string& name) const { return state_->values.count(name) > 0; }

std::string CommandLine::text(const std::string& name, const std::string& otherwise) const {
  return has(name) ? state_->values[name].as<std::string>() : otherwise;
}

std::vector<std::string> CommandLine::texts(const std::string& name) const {
  return has(name) ? state_->values[name].as<std::vector<std::string>>() : std::vector<std::string>{};
}

std::string CommandLine::path(const std::string& name, const std::string& otherwise) const {
  return expand_home(text(name, otherwise), name == state_->positional_name ? name : "--" + name);
}

std::vector<std::string> CommandLine::paths(const std::string& name) const {
  std::vector<std::string> paths = texts(name);
  for (std::string& path : paths) path = expand_home(path, "--" + name);
  return paths;
}

namespace {

template <class T>
T parse_number(const std::string& name, const std::string& text, T least, T most) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size())
    throw UserError("--" + name, fmt::format("'{}' is not a number", text));
  if (!(value >= least && value <= most))
    throw UserError("--" + name, fmt::format("{} is out of range", text), fmt::format("use {} to {}", least, most));
  return value;
}

}  // namespace

std::int64_t CommandLine::integer(const std::string& name, std::int64_t otherwise, std::int64_t least,
                                  std::int64_t most) const {
  return has(name) ? parse_number<std::int64_t>(name, text(name), least, most) : otherwise;
}

double CommandLine::number(const std::string& name, double otherwise, double least, double most) const {
  return has(name) ? parse_number<double>(name, text(name), least, most) : otherwise;
}

}  // namespace fulmen
