// Counts a run's memory by making it where memory is planned alone.
#include "train/memory_estimate.h"

#include <optional>

#include "data/batch_loader.h"
#include "parallel/planned_communicator.h"
#include "train/optimizer.h"

namespace fulmen {

MemoryLedger estimate_memory(const ModelConfig& model, const ModelRunnerOptions& options, const MeshShape& shape,
                             int rank, Device device, MemoryUse use) {
  ExecutionResources resources(ExecutionResources::planning, device);
  const std::unique_ptr<Communicator> world = make_planned_communicator(rank, shape.ranks());
  Mesh mesh(shape, *world);
  ModelRunner runner(model, options, mesh, resources.execution());
  std::optional<Optimizer> optimizer;
  if (use == MemoryUse::training)
    optimizer.emplace(OptimizerConfig(), 1.0, runner.parameters(), mesh, resources.execution());
  Batch batch;
  batch.batch = options.micro_batch.batch;
  batch.length =
      sequence_slice(options.micro_batch.length, mesh.size(Axis::sequence), mesh.coordinate(Axis::sequence)).size();
  const std::vector<Batch> batches(static_cast<std::size_t>(options.micro_batches), batch);
  if (use == MemoryUse::evaluation)
    runner.evaluate(batches);
  else
    runner.accumulate(batches, {});
  if (optimizer) optimizer->step(0.0, 0);
  return resources.ledger();
}

LeastMemory least_memory(const ModelConfig& model, const ModelRunnerOptions& options, const MeshShape& shape,
                         MemoryUse use) {
  const Precision& precision = options.precision;
  LeastMemory least;
  for_each_declaration(model, [&](const ParameterDeclaration& declaration) {
    double elements = 0.0;
    for (const LogicalTensor& tensor : declaration.tensors) elements += static_cast<double>(elements_of(tensor.shape));
    const auto bytes = [&](DType dtype) { return elements * static_cast<double>(size_of(dtype)); };
    least.weights += bytes(precision.weights_of(declaration.group));
    least.gradients += bytes(precision.gradients_of(declaration.group));
    if (use != MemoryUse::training) return;
    least.optimizer += 2.0 * bytes(precision.moments_of(declaration.group));
    if (precision.copies_weights_of(declaration.group)) least.optimizer += bytes(precision.master());
  });
  if (use == MemoryUse::evaluation) return least;
  least.activations = static_cast<double>(shape.data) * static_cast<double>(options.micro_batch.batch) *
                      static_cast<double>(options.micro_batch.length) * static_cast<double>(model.layers) *
                      static_cast<double>(model.hidden) * static_cast<double>(size_of(precision.parameters));
  return least;
}

double batch_memory(const ModelRunnerOptions& options, const MeshShape& shape) {
  const double batches = options.micro_batches + BatchLoaderOptions().read_ahead;
  const double tokens =
      static_cast<double>(options.micro_batch.batch) * static_cast<double>(options.micro_batch.length) / shape.sequence;
  constexpr double instructions = 7.0;  // of a micro-batch on a stage: three passes, four transfers
  return batches * tokens * static_cast<double>(Batch::bytes_per_token) +
         instructions * options.micro_batches * shape.pipeline * static_cast<double>(options.layout.chunks) *
             static_cast<double>(sizeof(Instruction));
}

}  // namespace fulmen
