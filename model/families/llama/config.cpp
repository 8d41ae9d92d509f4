// The LLaMA family's keys, and what it refuses.
#include "model/families/llama/config.h"

#include "framework/configuration.h"
#include "framework/text.h"
#include "model/families/attention_keys.h"

namespace fulmen {

void LlamaConfig::bind(Schema& schema) {
  schema.add("model.heads", heads, {0, 1 << 16}, "Heads of the queries.");
  schema.add("model.kv_heads", kv_heads, {0, 1 << 16},
             "Heads of keys and values, each read by as many heads of queries; 0: as many as `heads`.");
  schema.add("model.head_width", head_width, {0, 1 << 16}, "Width of a head; 0: `hidden` / `heads`.");
  schema.add("model.glu", glu, {0, 1 << 22}, "Inner width of the gated linear unit.");
  schema.add("model.rope_theta", rope_theta, {1.0, 1e12}, "Base of the rotary frequencies.");
  schema.add("model.rope_type", rope_type, {{"default"}, {"llama3"}},
             "llama3: low frequencies are divided by `rope_factor`, as LLaMA 3.1 has it.");
  schema.add("model.rope_factor", rope_factor, {1.0, 1e6}, "With llama3: the context is that many times longer.");
  schema.add("model.rope_low_frequency_factor", rope_low_frequency_factor, {0.0, 1e6},
             "With llama3: turns within the original context below which a frequency is divided.");
  schema.add("model.rope_high_frequency_factor", rope_high_frequency_factor, {0.0, 1e6},
             "With llama3: turns above which a frequency stays as it is.");
  schema.add("model.rope_original_length", rope_original_length, {1, std::int64_t{1} << 32},
             "With llama3: tokens of the original context.");
  schema.add("model.norm_epsilon", norm_epsilon, {0.0, 1.0}, "Added to the mean square in every norm.");
  schema.add("model.tied", tied_head, "Whether the head's projection is the embedding's matrix.");
}

void LlamaConfig::validate_family() const {
  require_positive("heads", heads);
  require_positive("glu", glu);
  check_heads(hidden, heads, kv(), head_width);
  if (width() % 2 != 0)
    throw UserError("model.head_width", fmt::format("{} is odd: rotary positions turn pairs", width()));
  if (rope_theta <= 1.0) throw UserError("model.rope_theta", fmt::format("{} is not above 1", rope_theta));
  if (rope_type != "default" && rope_type != "llama3")
    throw UserError("model.rope_type", fmt::format("'{}' is unknown", rope_type), "use default or llama3");
  if (rope_type == "llama3" && rope_high_frequency_factor <= rope_low_frequency_factor)
    throw UserError("model.rope_high_frequency_factor",
                    fmt::format("{} is not above rope_low_frequency_factor {}", rope_high_frequency_factor,
                                rope_low_frequency_factor));
}

void LlamaConfig::add_identity(std::map<std::string, std::string>& identity) const {
  identity["heads"] = std::to_string(heads);
  identity["kv_heads"] = std::to_string(kv());
  identity["head_width"] = std::to_string(width());
  identity["glu"] = std::to_string(glu);
  identity["rope_theta"] = fmt::format("{}", rope_theta);
  identity["norm_epsilon"] = fmt::format("{}", norm_epsilon);
  identity["tied"] = tied_head ? "true" : "false";
  identity["rope_type"] = rope_type;
  if (rope_type != "llama3") return;
  identity["rope_factor"] = fmt::format("{}", rope_factor);
  identity["rope_low_frequency_factor"] = fmt::format("{}", rope_low_frequency_factor);
  identity["rope_high_frequency_factor"] = fmt::format("{}", rope_high_frequency_factor);
  identity["rope_original_length"] = std::to_string(rope_original_length);
}

void LlamaConfig::check_shares(int shares) const { check_head_shares(heads, kv(), shares); }

EmbeddingSpec LlamaConfig::embedding() const { return {"model.embed_tokens.weight"}; }

}  // namespace fulmen
