// The channel mixer of experts: y_t = sum over the chosen e of w_te D_e (silu(G_e x_t) * (U_e x_t)). A router over x
// makes the weights. A loss keeps the experts equally busy.
#pragma once

#include <string>

#include "model/branch.h"

namespace fulmen {

struct ExpertsOptions {
  std::int64_t hidden = 0, inner = 0;  // inner: of an expert
  std::int64_t experts = 0, chosen = 0;
  Norm norm = {};
  Junction junction = {};
  double router_loss = 0.0;  // coefficient of the layer's loss
  double initializer_std = 0.02;
};

// router, gate_up, down: names of the weights [experts, hidden], [experts, 2 inner, hidden], [experts, hidden, inner].
Branch experts(const std::string& router, const std::string& gate_up, const std::string& down,
               const ExpertsOptions& options);

}  // namespace fulmen
