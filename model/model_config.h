// What makes a model this model: its family, variant and sizes.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace fulmen {

inline constexpr double released_norm_epsilon = 1e-6;

struct ModelConfig {
  std::string preset;  // the name it came from, or empty
  std::string family = "transnormer";
  std::string variant = "tnl1";  // tnl1: full-rank gate u, SiLU on q and k. tnl3: low-rank sigmoid gate, SiLU on v too
  std::int64_t layers = 0;
  std::int64_t hidden = 0;  // d
  std::int64_t heads = 0;   // H; the head width is d / H
  std::int64_t glu = 0;     // inner width of the channel mixer
  std::int64_t vocabulary = 0;
  std::int64_t gate_rank = 0;                   // of tnl3's low-rank gate; unused by tnl1
  std::vector<std::int64_t> lrpe_layers = {0};  // layers whose q and k carry LRPE
  double norm_epsilon = released_norm_epsilon;
  double initializer_std = 0.02;
  std::optional<std::int64_t> pad_id;  // this row of the embedding starts as zero

  std::int64_t head_width() const { return hidden / heads; }
  bool low_rank_gate() const { return variant == "tnl3"; }
  bool has_lrpe(std::int64_t layer) const;
  // Throws UserError naming the key when sizes are missing or do not fit each other.
  void validate() const;
  // What a checkpoint must agree on, as YAML scalars: family, variant, layers, hidden, heads, glu, vocabulary,
  // lrpe_layers; gate_rank where the variant has one, and norm_epsilon where it is not that of the released models.
  std::map<std::string, std::string> identity() const;
  // The reverse. Throws UserError (naming `source`) when a value is missing, malformed or does not fit the others.
  static ModelConfig from_identity(const std::map<std::string, std::string>& identity, const std::string& source);
};

// The published configurations (and, marked in configs/, shapes from memory), by name: transnormer-385m, ...
const std::vector<std::string>& preset_names();
// Throws UserError naming the nearest preset.
ModelConfig preset(const std::string& name);

// Parameters of the model, tied ones once, as its declarations have them.
std::int64_t parameter_count(const ModelConfig& config);

}  // namespace fulmen
