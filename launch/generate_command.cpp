// fulmen generate: continues a text, token by token.
#include <chrono>
#include <cstdio>

#include <nlohmann/json.hpp>

#include "data/tokenizer.h"
#include "framework/log.h"
#include "framework/text.h"
#include "infer/decoder.h"
#include "infer/sampler.h"
#include "launch/command.h"
#include "launch/command_line.h"
#include "launch/run_configuration.h"

namespace fulmen {

namespace {

// The checkpoint's own tokeniser; where it has none, prompts are token ids.
std::unique_ptr<Tokenizer> tokenizer_of(const CheckpointReader& checkpoint, const std::string& kind,
                                        std::int64_t vocabulary) {
  if (kind == "bytes") return make_tokenizer(TokenizerKind::bytes, {}, vocabulary);
  if (kind != "auto") throw UserError("--tokenizer", "'" + kind + "' is unknown", "use auto or bytes");
  if (checkpoint.description().tokenizer.kind == "bytes") return make_tokenizer(TokenizerKind::bytes, {}, vocabulary);
  if (const auto file = checkpoint.tokenizer_file())
    return make_tokenizer(TokenizerKind::sentencepiece, *file, vocabulary);
  return make_tokenizer(TokenizerKind::none, {}, vocabulary);
}

CommandLine command_line() {
  CommandLine line(
      "generate --checkpoint DIR --prompt TEXT [options]",
      "Continues a text by recurrent decoding: memory does not grow with its length. A checkpoint without a\n"
      "tokeniser takes and gives token ids, as numbers with spaces between.",
      "fulmen generate --checkpoint runs/demo/checkpoints --prompt 'Ship \\Ship\\, n.' --tokens 100 --seed 1");
  line.option("checkpoint", "a checkpoint, a folder of them or a run (then the newest)", true);
  line.option("prompt", "the text to continue", true);
  line.option("tokens", "tokens to generate at most (100)");
  line.option("temperature", "0 takes the likeliest token (0.8)");
  line.option("top-k", "only the K likeliest; 0: all (0)");
  line.option("top-p", "only the likeliest that make up this probability (0.95)");
  line.option("seed", "of the random numbers (1)");
  line.option("device", "auto (default), cpu or cuda");
  line.option("precision", "auto (default: bf16 on a GPU, else fp32), bf16, fp32 or fp64");
  line.option("tokenizer", "auto (default: the checkpoint's own) or bytes");
  line.flag("json", "print text, token ids and rate as one JSON object");
  return line;
}

SamplingOptions sampling_options(const CommandLine& line) {
  SamplingOptions sampling;
  sampling.temperature = line.number("temperature", 0.8, 0.0, 100.0);
  sampling.top_k = line.integer("top-k", 0, 0, 1 << 30);
  sampling.top_p = line.number("top-p", 0.95, 1e-9, 1.0);
  sampling.seed = static_cast<std::uint64_t>(line.integer("seed", 1, 0, std::int64_t{1} << 62));
  return sampling;
}

// At least one token: an empty prompt begins a document, where the tokeniser has a mark for its end.
std::vector<std::int32_t> encode_prompt(const Tokenizer& tokenizer, const std::string& text, std::int64_t vocabulary) {
  std::vector<std::int32_t> prompt = tokenizer.encode(text);
  if (prompt.empty()) {
    if (!tokenizer.end_of_document()) throw UserError("--prompt", "holds no token", "give at least one");
    prompt.push_back(static_cast<std::int32_t>(*tokenizer.end_of_document()));
  }
  for (const std::int32_t id : prompt)
    if (id < 0 || id >= vocabulary)
      throw UserError("--prompt", fmt::format("token {} is not in the model's vocabulary of {}", id, vocabulary));
  return prompt;
}

// At most `count` tokens after the prompt, and none from the end of the document on.
std::vector<std::int32_t> continue_prompt(const std::vector<std::int32_t>& prompt, std::int64_t count,
                                          const Sampler& sampler, std::optional<std::int64_t> end_of_document,
                                          Decoder& decoder) {
  std::vector<std::int32_t> generated;
  std::int32_t token = prompt.back();
  while (static_cast<std::int64_t>(generated.size()) < count) {
    std::vector<double> logits = decoder.advance(token);
    token = static_cast<std::int32_t>(sampler.sample(
        Tensor(logits.data(), DType::fp64, {static_cast<std::int64_t>(logits.size())}), decoder.position()));
    if (end_of_document == token) break;
    generated.push_back(token);
  }
  return generated;
}

}  // namespace

ExitCode run_generate(const std::vector<std::string>& arguments, World& world) {
  CommandLine line = command_line();
  if (!line.parse(arguments)) return ExitCode::done;
  if (world.size() > 1) throw UserError("generate", "runs as one process", "start it without mpirun");
  configure_threads({});

  const Device device = choose_device(line.text("device", "auto"), "--device");
  const Precision precision = parse_precision(line.text("precision", "auto"), device);
  const Sampler sampler(sampling_options(line));
  const std::int64_t count = line.integer("tokens", 100, 0, std::int64_t{1} << 40);
  const CheckpointReader checkpoint(find_checkpoint(line.path("checkpoint")));

  const std::int64_t vocabulary =
      ModelConfig::from_identity(checkpoint.description().model, checkpoint.folder().string())->vocabulary;
  const std::unique_ptr<Tokenizer> tokenizer = tokenizer_of(checkpoint, line.text("tokenizer", "auto"), vocabulary);
  const std::vector<std::int32_t> prompt = encode_prompt(*tokenizer, line.text("prompt"), vocabulary);
  ExecutionResources resources(device);
  Decoder decoder(checkpoint, static_cast<std::int64_t>(prompt.size()) + count, precision, resources.execution());
  for (std::size_t i = 0; i + 1 < prompt.size(); ++i) decoder.advance(prompt[i]);
  const auto start = std::chrono::steady_clock::now();
  const std::vector<std::int32_t> generated =
      continue_prompt(prompt, count, sampler, tokenizer->end_of_document(), decoder);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const double rate = seconds > 0.0 ? static_cast<double>(generated.size()) / seconds : 0.0;

  std::vector<std::int32_t> whole = prompt;
  whole.insert(whole.end(), generated.begin(), generated.end());
  const std::string text = tokenizer->decode(whole);
  if (line.has("json")) {
    const nlohmann::ordered_json result = {
        {"text", text}, {"prompt_tokens", prompt}, {"tokens", generated}, {"tokens_per_second", rate}};
    std::printf("%s\n", result.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return ExitCode::done;
  }
  std::printf("%s\n", text.c_str());
  log_info("{} tokens, {:.0f} tokens/s, state {}", generated.size(), rate,
           human_bytes(static_cast<double>(decoder.state_bytes())));
  return ExitCode::done;
}

}  // namespace fulmen
