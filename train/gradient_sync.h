// Summing gradients over the ranks that hold parts of them, as the parameters' placements say.
#pragma once

#include <vector>

#include "model/parameter_store.h"
#include "parallel/mesh.h"

namespace fulmen {

class GradientSync {
 public:
  GradientSync(ParameterStore& parameters, Mesh& mesh, const Execution& execution);

  // Between the stages that share a parameter (the tied embedding).
  void reduce_shared();
  // Over tensor for parameters with partial gradients there, then over data and sequence for all.
  void reduce_gradients();

 private:
  struct Shared {
    ParameterId id;
    Communicator* stages;
  };

  ParameterStore& parameters_;
  Execution execution_;
  Communicator& replicas_;                  // data x sequence
  Communicator& tensor_;
  std::vector<Shared> shared_;
  std::vector<ParameterId> tensor_partial_;
};

}  // namespace fulmen
