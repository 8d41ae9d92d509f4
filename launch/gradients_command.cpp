// fulmen gradients: the loss and the full gradient of every parameter for one global batch; the tool for comparing
// layouts.
#include <cstdio>
#include <sstream>

#include "checkpoint/agreement.h"
#include "checkpoint/parameters.h"
#include "data/batch_loader.h"
#include "framework/hdf5.h"
#include "framework/pending_output.h"
#include "framework/text.h"
#include "launch/command.h"
#include "launch/command_line.h"
#include "launch/run_configuration.h"
#include "model/piece_transfer.h"
#include "train/model_runner.h"
#include "train/optimizer.h"
#include "train/preflight.h"
#include "train/trainer.h"

namespace fulmen {

namespace {

// A piece's header as a line of text: dtype, rank, shape of the whole, offset, shape of the piece, name.
std::string describe(const ParameterPiece& piece) {
  std::ostringstream text;
  text << name_of(piece.memory.dtype()) << ' ' << piece.global_shape.size();
  for (const std::int64_t n : piece.global_shape) text << ' ' << n;
  for (const std::int64_t n : piece.offset) text << ' ' << n;
  for (const std::int64_t n : piece.memory.shape()) text << ' ' << n;
  text << ' ' << piece.tensor << '\n';
  return text.str();
}

struct RemotePiece {
  DType dtype;
  Shape global_shape;
  std::vector<std::int64_t> offset;
  Shape shape;
  std::string tensor;
};

std::vector<RemotePiece> parse_pieces(const std::string& text) {
  std::vector<RemotePiece> pieces;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string dtype;
    std::size_t rank = 0;
    words >> dtype >> rank;
    RemotePiece piece{parse_dtype(dtype), Shape(rank), std::vector<std::int64_t>(rank), Shape(rank), {}};
    for (auto& n : piece.global_shape) words >> n;
    for (auto& n : piece.offset) words >> n;
    for (auto& n : piece.shape) words >> n;
    words >> piece.tensor;
    pieces.push_back(std::move(piece));
  }
  return pieces;
}

// A contiguous copy in host memory, for transfers and files.
Tensor pack(const Execution& execution, const Tensor& piece, std::vector<std::byte>& memory) {
  memory.resize(piece.bytes());
  copy_piece_to_host(execution, piece, memory.data());
  return Tensor(memory.data(), piece.dtype(), piece.shape());
}

void write_piece(hdf5::File& file, const RemotePiece& piece, const Tensor& memory) {
  const std::string name = "/grads/" + piece.tensor;
  hdf5::Dataset dataset =
      file.exists(name) ? file.dataset(name) : file.create_dataset(name, piece.dtype, piece.global_shape);
  dataset.write(piece.offset, memory);
  dataset.close();
}

// Every rank's owned pieces to one file, written by rank 0, which alone has an output, piece by piece.
void write_gradients(PendingOutput* output, double loss, const ParameterStore& parameters, const Execution& execution,
                     Communicator& ranks) {
  std::vector<ParameterPiece> mine;
  for (ParameterPiece& piece : parameters.pieces(parameters.flat_gradients()))
    if (piece.owned) mine.push_back(std::move(piece));
  std::string description;
  for (const ParameterPiece& piece : mine) description += describe(piece);

  std::optional<hdf5::File> file;
  if (output != nullptr) {
    file.emplace(hdf5::File::create(output->place()));
    hdf5::Dataset dataset = file->create_dataset("/loss", DType::fp64, {});
    dataset.write({}, Tensor(&loss, DType::fp64, {}));
    dataset.close();
  }
  std::vector<std::byte> memory;
  for (int owner = 0; owner < ranks.size(); ++owner) {
    const std::vector<RemotePiece> pieces = parse_pieces(ranks.broadcast_text(description, owner));
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      if (ranks.rank() == owner) {
        const Tensor packed = pack(execution, mine[i].memory, memory);
        if (owner == 0) {
          write_piece(*file, pieces[i], packed);
          continue;
        }
        const Transfer send{Transfer::Direction::send, 0, packed.flatten()};
        ranks.exchange({&send, 1}, Stream{});
      } else if (ranks.rank() == 0) {
        memory.resize(static_cast<std::size_t>(elements_of(pieces[i].shape)) * size_of(pieces[i].dtype));
        const Tensor packed(memory.data(), pieces[i].dtype, pieces[i].shape);
        const Transfer receive{Transfer::Direction::receive, owner, packed.flatten()};
        ranks.exchange({&receive, 1}, Stream{});
        write_piece(*file, pieces[i], packed);
      }
    }
  }
  if (file) file->close();
  if (output != nullptr) output->complete();
}

// Without one there is no loss, and nothing to differentiate.
void require_targets(const StepLoss& loss, const std::string& corpus) {
  if (loss.targets > 0.0) return;
  throw UserError(corpus, "none of the targets in the first global batch counts",
                  "use a corpus of longer documents, or a longer data.sequence_length");
}

}  // namespace

ExitCode run_gradients(const std::vector<std::string>& arguments, World& world) {
  CommandLine line(
      "gradients CONFIG --data DIR --output FILE.h5 [--checkpoint DIR] [--set key=value]... [--overwrite]",
      "The loss and the gradient of every parameter for the first global batch: /loss and /grads/NAME, the same\n"
      "whatever the layout.",
      "mpirun -n 4 fulmen gradients configs/demo.yaml --checkpoint runs/demo/checkpoints --data corpus --output g.h5");
  line.positional("CONFIG", "the configuration");
  line.option("checkpoint", "weights; without one they are initialised from run.seed");
  line.option("data", "a corpus (data.path)");
  line.option("output", "the HDF5 file to write", true);
  line.flag("overwrite", overwrite_help);
  line.repeatable("set", "change a key; may be repeated: parallel.tensor=2");
  line.flag("json", "print loss and gradient norm as one JSON object");
  if (!line.parse(arguments)) return ExitCode::done;

  std::vector<std::string> overrides = line.texts("set");
  if (line.has("data")) overrides.push_back("data.path=" + line.path("data"));
  const RunConfiguration configuration = read_run_configuration(line.path("CONFIG"), overrides);
  const Device device = choose_device(configuration.run.device);
  Communicator& ranks = world.communicator(device, configuration.transport);
  Mesh mesh(mesh_shape(configuration.parallel, ranks.size()), ranks);
  configure_threads(configuration.run.threads);
  const TrainerOptions options = configuration.trainer_options(device);
  check_training(options, mesh.shape());
  require_memory(*options.model, runner_options(options, mesh.shape()), mesh, device);

  std::optional<PendingOutput> output;  // rank 0's
  run_agreed(ranks, [&] {
    if (ranks.rank() == 0) output.emplace(line.path("output"), PendingOutput::Kind::file, line.has("overwrite"));
  });
  ExecutionResources resources(device, configuration.run.deterministic);
  ModelRunner runner(*options.model, runner_options(options, mesh.shape()), mesh, resources.execution());
  if (line.has("checkpoint")) {
    const CheckpointReader checkpoint(find_checkpoint(line.path("checkpoint"), ranks));
    require_same_model(checkpoint, *options.model);
    checkpoint.verify(ranks);
    load_pieces(checkpoint, runner.parameters(), runner.parameters().flat_weights(), "parameters/",
                resources.execution());
    runner.weights_changed();
  } else {
    runner.parameters().initialize(static_cast<std::uint64_t>(options.run.seed), resources.execution());
  }
  BatchLoader loader(options.data.path, loader_options(options, mesh, 0));
  std::vector<Batch> batches;
  for (int m = 0; m < runner.micro_batches(); ++m) batches.push_back(loader.next());
  Optimizer optimizer(options.train.optimizer, options.train.clip, runner.parameters(), mesh, resources.execution());
  double norm = 0.0;
  const StepLoss loss = runner.accumulate(batches, [&] { norm = optimizer.compute_gradient_norm(); });
  require_targets(loss, options.data.path);
  write_gradients(output ? &*output : nullptr, loss.loss_nats, runner.parameters(), resources.execution(),
                  world.communicator());
  if (ranks.rank() != 0) return ExitCode::done;
  if (line.has("json"))
    std::printf("{\"loss_nats\": %.17g, \"grad_norm\": %.17g, \"targets\": %.17g}\n", loss.loss_nats, norm,
                loss.targets);
  else
    std::printf("loss %.6f nats over %s targets, gradient norm %.6f -> %s\n", loss.loss_nats,
                with_thousands(static_cast<std::int64_t>(loss.targets)).c_str(), norm, line.path("output").c_str());
  return ExitCode::done;
}

}  // namespace fulmen
