// Validation and identity of model configurations.
#include "model/model_config.h"

#include <algorithm>
#include <charconv>
#include <set>
#include <string_view>

#include "framework/error.h"
#include "framework/text.h"

namespace fulmen {

bool ModelConfig::has_lrpe(std::int64_t layer) const {
  return std::find(lrpe_layers.begin(), lrpe_layers.end(), layer) != lrpe_layers.end();
}

void ModelConfig::validate() const {
  const auto require_positive = [](const char* key, std::int64_t value) {
    if (value > 0) return;
    throw UserError(fmt::format("model.{}", key), value == 0 ? "is not given" : fmt::format("{} is less than 1", value),
                    "name a model.preset or spell the model out");
  };
  if (family != "transnormer")
    throw UserError("model.family", fmt::format("'{}' is not built", family), "use transnormer");
  if (variant != "tnl1" && variant != "tnl3")
    throw UserError("model.variant", fmt::format("'{}' is unknown", variant), "use tnl1 or tnl3");
  require_positive("layers", layers);
  require_positive("hidden", hidden);
  require_positive("heads", heads);
  require_positive("glu", glu);
  require_positive("vocabulary", vocabulary);
  if (low_rank_gate()) require_positive("gate_rank", gate_rank);
  if (hidden % heads != 0)
    throw UserError("model.heads", fmt::format("{} does not divide hidden {}", heads, hidden),
                    "choose a number of heads that divides the hidden width");
  for (const std::int64_t layer : lrpe_layers)
    if (layer < 0 || layer >= layers)
      throw UserError("model.lrpe_layers", fmt::format("{} is not one of the layers 0 to {}", layer, layers - 1));
  if (!(norm_epsilon > 0.0))
    throw UserError("model.norm_epsilon", fmt::format("{} is not positive", norm_epsilon),
                    "without it a row of zeros has no norm: the released models use 1e-6");
  if (pad_id && (*pad_id < 0 || *pad_id >= vocabulary))
    throw UserError("model.pad_id", fmt::format("{} is not in the vocabulary of {}", *pad_id, vocabulary));
}

std::map<std::string, std::string> ModelConfig::identity() const {
  std::vector<std::string> lrpe;
  for (const std::int64_t layer : std::set<std::int64_t>(lrpe_layers.begin(), lrpe_layers.end()))
    lrpe.push_back(std::to_string(layer));
  std::map<std::string, std::string> identity = {
      {"family", family},
      {"variant", variant},
      {"layers", std::to_string(layers)},
      {"hidden", std::to_string(hidden)},
      {"heads", std::to_string(heads)},
      {"glu", std::to_string(glu)},
      {"vocabulary", std::to_string(vocabulary)},
      {"lrpe_layers", fmt::format("[{}]", join(lrpe, ", "))},
  };
  if (low_rank_gate()) identity["gate_rank"] = std::to_string(gate_rank);
  if (norm_epsilon != released_norm_epsilon) identity["norm_epsilon"] = fmt::format("{}", norm_epsilon);
  return identity;
}

namespace {

// T is std::int64_t or double.
template <class T>
T parse_number(std::string_view text, const std::string& key, const std::string& source) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  T value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size())
    throw UserError(
        source, fmt::format("model {} is '{}', not {}", key, text, std::is_integral_v<T> ? "an integer" : "a number"));
  return value;
}

}  // namespace

ModelConfig ModelConfig::from_identity(const std::map<std::string, std::string>& identity, const std::string& source) {
  const auto text = [&](const std::string& key) -> const std::string& {
    const auto found = identity.find(key);
    if (found == identity.end())
      throw UserError(source, fmt::format("does not say the model's {}", key),
                      "it was not written by this program, or is damaged");
    return found->second;
  };
  const auto integer = [&](const std::string& key) { return parse_number<std::int64_t>(text(key), key, source); };
  ModelConfig config;
  config.family = text("family");
  config.variant = text("variant");
  config.layers = integer("layers");
  config.hidden = integer("hidden");
  config.heads = integer("heads");
  config.glu = integer("glu");
  config.vocabulary = integer("vocabulary");
  if (config.low_rank_gate()) config.gate_rank = integer("gate_rank");
  if (identity.contains("norm_epsilon"))
    config.norm_epsilon = parse_number<double>(text("norm_epsilon"), "norm_epsilon", source);
  config.lrpe_layers.clear();
  const std::string& lrpe = text("lrpe_layers");
  if (lrpe.size() < 2 || lrpe.front() != '[' || lrpe.back() != ']')
    throw UserError(source, fmt::format("model lrpe_layers is '{}', not a list", lrpe));
  for (const std::string& part : split(lrpe.substr(1, lrpe.size() - 2), ','))
    if (part.find_first_not_of(' ') != std::string::npos)
      config.lrpe_layers.push_back(parse_number<std::int64_t>(part, "lrpe_layers", source));
  try {
    config.validate();
  } catch (const UserError& error) {
    throw UserError(source, fmt::format("describes no model that can be: {}", error.what()));
  }
  return config;
}

}  // namespace fulmen
