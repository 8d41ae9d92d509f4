// The configuration of a run: YAML through the schema.
#include "framework/yaml.h"
#include "launch/run_configuration.h"
#include "tests/fuzz/scratch.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fulmen;
  fuzz::scratch();
  const std::string text(fuzz::as_text(data, size));
  RunConfiguration configuration;
  if (!fuzz::accepts([&] { configuration = parse_run_configuration(text, "input", {}); })) return 0;
  // A resumed run reads the configuration back that the earlier run echoed.
  const RunConfiguration again = parse_run_configuration(configuration.resolved, "resolved", {});
  FULMEN_CHECK(again.resolved == configuration.resolved, "read back as another configuration:\n{}\n{}",
               configuration.resolved, again.resolved);
  FULMEN_CHECK(compare_with_checkpoint(again, configuration.resolved, {}).empty(), "differs from itself");
  for (const auto& [key, value] : configuration.flat) value_of(configuration, key);
  return 0;
}
