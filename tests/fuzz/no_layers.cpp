// Stands for the layers of the families (model/families/*/layers.cpp) and the stages made of them, which would bring
// every kernel along. No reader of files asks for them. A reader that comes to ask is a finding.
#include "framework/error.h"
#include "model/branch.h"
#include "model/families/gla/config.h"
#include "model/families/gpt/config.h"
#include "model/families/llama/config.h"
#include "model/families/minimax/config.h"
#include "model/families/retnet/config.h"
#include "model/families/transnormer/config.h"
#include "model/stage.h"

namespace fulmen {

namespace {

[[noreturn]] void refuse() { throw InternalError("a reader asks for the layers of a model"); }

}  // namespace

#define FULMEN_NO_LAYERS(Config)              \
  HeadSpec Config::head() const { refuse(); } \
  std::vector<Branch> Config::layer(std::int64_t /*layer*/) const { refuse(); }

FULMEN_NO_LAYERS(GlaConfig)
FULMEN_NO_LAYERS(GptConfig)
FULMEN_NO_LAYERS(LlamaConfig)
FULMEN_NO_LAYERS(MinimaxConfig)
FULMEN_NO_LAYERS(RetnetConfig)
FULMEN_NO_LAYERS(TransnormerConfig)

#undef FULMEN_NO_LAYERS

StageRange whole_model(const ModelConfig& /*config*/) { refuse(); }
std::vector<ParameterDeclaration> declare_stage(const ModelConfig& /*config*/, const StageRange& /*range*/,
                                                int /*pipeline_stages*/) {
  refuse();
}

}  // namespace fulmen
