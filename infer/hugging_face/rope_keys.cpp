// The keys of rotary positions in a config.json.
#include "infer/hugging_face/rope_keys.h"

#include "framework/error.h"

namespace fulmen {

namespace {

std::string type_of(const ConfigReader& keys) {
  for (const char* const key : {"rope_type", "type"})
    if (keys.has(key)) {
      const nlohmann::json& value = keys.value(key);
      if (value != "default" && value != "llama3")
        throw UserError(keys.where(), fmt::format("rope type {} is not supported", value.dump()),
                        "models that can be imported have default or llama3");
      return value.get<std::string>();
    }
  return "default";
}

void read_section(const ConfigReader& keys, RopeKeys& rope) {
  rope.type = type_of(keys);
  rope.theta = keys.number("rope_theta", rope.theta);
  if (keys.number("partial_rotary_factor", 1.0) != 1.0)
    throw UserError(keys.where(), "partial_rotary_factor is not 1; only rotation of whole heads is supported");
  if (rope.type == "default") return;
  rope.scaling.factor = keys.number("factor", rope.scaling.factor);
  rope.scaling.low_frequency_factor = keys.number("low_freq_factor", rope.scaling.low_frequency_factor);
  rope.scaling.high_frequency_factor = keys.number("high_freq_factor", rope.scaling.high_frequency_factor);
  rope.scaling.original_length = keys.number("original_max_position_embeddings", rope.scaling.original_length);
}

bool same(const RopeKeys& a, const RopeKeys& b) {
  if (a.theta != b.theta || a.type != b.type) return false;
  return a.type == "default" ||
         (a.scaling.factor == b.scaling.factor && a.scaling.original_length == b.scaling.original_length &&
          a.scaling.low_frequency_factor == b.scaling.low_frequency_factor &&
          a.scaling.high_frequency_factor == b.scaling.high_frequency_factor);
}

}  // namespace

RopeKeys read_rope(const ConfigReader& config, const RopeKeys& defaults) {
  RopeKeys old = defaults;
  old.theta = config.number("rope_theta", old.theta);
  if (config.has("rope_scaling")) {
    const ConfigReader section = config.section("rope_scaling");
    read_section(section, old);
    section.refuse_others();
  }
  if (!config.has("rope_parameters")) return old;
  RopeKeys rope = defaults;
  const ConfigReader section = config.section("rope_parameters");
  read_section(section, rope);
  section.refuse_others();
  const bool both = config.has("rope_theta") || config.has("rope_scaling");
  if (both && !same(rope, old))
    throw UserError(config.where(), "rope_parameters and rope_theta or rope_scaling disagree",
                    "leave the keys of one form out");
  return rope;
}

void write_rope(const RopeKeys& rope, nlohmann::ordered_json& json) {
  nlohmann::ordered_json keys = {{"rope_type", rope.type}};
  if (rope.type == "llama3") {
    keys["factor"] = rope.scaling.factor;
    keys["low_freq_factor"] = rope.scaling.low_frequency_factor;
    keys["high_freq_factor"] = rope.scaling.high_frequency_factor;
    keys["original_max_position_embeddings"] = static_cast<std::int64_t>(rope.scaling.original_length);
  }
  json["rope_theta"] = rope.theta;
  json["rope_scaling"] = rope.type == "default" ? nlohmann::ordered_json() : keys;
  keys["rope_theta"] = rope.theta;
  json["rope_parameters"] = keys;
}

}  // namespace fulmen
