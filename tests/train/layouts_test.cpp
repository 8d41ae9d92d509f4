// Layouts do not change what is trained, over a covering array of everything that a layout can be (layout_matrix.h).
// The gradient of every parameter, three training steps, and a resume from a checkpoint of another layout equal one
// rank's. In fp64 on the CPU; with FULMEN_TEST_DEVICE=cuda some of the layouts in fp32, all ranks on GPU 0.
// FULMEN_LAYOUTS=3/1000 takes share 3 (from 0) of 1000 of the whole product instead; scripts/test.sh --all does so for
// all shares. With FULMEN_TEST_TRANSPORT=nccl, too, the ranks have a GPU each, and FULMEN_LAYOUT_RANKS=2 takes layouts
// of two ranks.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <numeric>
#include <optional>
#include <utility>

#include <gtest/gtest.h>

#include "data/batch_loader.h"
#include "data/corpus_writer.h"
#include "framework/gpu.h"
#include "parallel/nccl_communicator.h"
#include "parallel/shard_groups.h"
#include "parallel/staged_communicator.h"
#include "tests/framework/temporary_folder.h"
#include "tests/golden.h"
#include "tests/kernels/kernel_test.h"
#include "tests/model/toy_family.h"
#include "tests/mpi_main.h"
#include "tests/train/layout_matrix.h"
#include "tests/train/matrix_models.h"
#include "train/learning_rate.h"
#include "train/memory_estimate.h"
#include "train/optimizer.h"
#include "train/trainer.h"
#include "train/training_state.h"

namespace fulmen {
namespace {

// A GPU for each rank.
bool over_nccl() {
  const char* const transport = std::getenv("FULMEN_TEST_TRANSPORT");
  return testing::on_gpu() && transport != nullptr && std::string(transport) == "nccl";
}
Device run_device() { return over_nccl() ? Device::cuda(test_world().rank()) : testing::test_device(); }

std::unique_ptr<Communicator> on_device(std::unique_ptr<Communicator> ranks, std::size_t least_bytes_to_copy) {
  if (!testing::on_gpu()) return ranks;
  if (over_nccl() && ranks->size() > 1)
    return make_nccl_communicator(std::move(ranks), run_device(), least_bytes_to_copy);
  return make_staged_communicator(std::move(ranks), run_device());
}

DType test_dtype() { return testing::on_gpu() ? DType::fp32 : DType::fp64; }
double tolerance() { return testing::on_gpu() ? 1e-5 : 1e-10; }
constexpr std::int64_t global_batch = matrix_global_batch, sequence_length = matrix_sequence_length;
constexpr int training_steps = 3, resumed_after = 2;
constexpr double clip = 0.1;  // below the norm of every clip group

// The tests' own family has operations of the CPU alone.
std::vector<LayoutCase> without_toy(std::vector<LayoutCase> cases) {
  std::erase_if(cases, [](const LayoutCase& layout) { return !matrix_model(layout.model).on_gpu; });
  return cases;
}

// On the GPU, which all ranks share, every n-th layout: a stride that leaves some of everything.
std::vector<LayoutCase> cases_to_run() {
  if (const char* ranks = std::getenv("FULMEN_LAYOUT_RANKS"))
    return without_toy(layouts_of_ranks(std::stoi(ranks), 60));
  if (const char* share = std::getenv("FULMEN_LAYOUTS")) {
    const std::string text = share;
    const std::size_t slash = text.find('/');
    FULMEN_CHECK(slash != std::string::npos, "FULMEN_LAYOUTS={}: expected SHARE/SHARES, from 0", text);
    return layout_shard(std::stoll(text.substr(0, slash)), std::stoll(text.substr(slash + 1)));
  }
  if (!testing::on_gpu()) return layout_matrix();
  constexpr std::size_t stride = 5;
  const std::vector<LayoutCase> cases = layout_matrix();
  std::vector<LayoutCase> chosen;
  for (std::size_t i = 0; i < cases.size(); i += stride) chosen.push_back(cases[i]);
  return without_toy(std::move(chosen));
}

// Uneven stages: one layer each, and the rest on one stage.
std::vector<std::int64_t> uneven_stages(const LayoutCase& layout) {
  const std::size_t parts = static_cast<std::size_t>(layout.shape.pipeline) * static_cast<std::size_t>(layout.chunks);
  std::vector<std::int64_t> stages(parts, 1);
  stages[static_cast<std::size_t>(layout.micro_batches) % parts] += matrix_layers - static_cast<std::int64_t>(parts);
  return stages;
}

TrainerOptions options_of(const LayoutCase& layout, const std::filesystem::path& corpus) {
  TrainerOptions options;
  options.model = matrix_model(layout.model).config;
  options.layout = layout.layout();
  if (layout.uneven) options.layout.stages = uneven_stages(layout);
  options.precision = {test_dtype(), test_dtype()};
  options.data.path = corpus.string();
  options.data.sequence_length = sequence_length;
  options.data.reset_state_at_documents = layout.documents;
  options.train.steps = training_steps;
  options.train.global_batch = global_batch;
  options.train.micro_batch = global_batch / (layout.shape.data * layout.micro_batches);
  options.train.optimizer.learning_rate = 1e-2;
  options.train.clip = clip;
  if (test_dtype() == DType::fp32)
    options.train.optimizer.epsilon = 1e-3;  // keeps rounding in gradients near zero from growing
  options.train.schedule.warmup_steps = 2;
  return options;
}

// The loss of a step, and the norms of the clip groups before clipping.
struct Step {
  double loss = 0.0;
  std::map<std::string, double> norms;
};

// One rank's steps and first gradient.
struct Reference {
  std::map<std::string, std::vector<double>> gradients;
  std::map<std::string, double> largest;  // of each gradient's magnitudes
  std::vector<Step> steps;
};

// A model on some ranks, stepped by hand.
class Training {
 public:
  Training(const TrainerOptions& options, std::unique_ptr<Communicator> ranks,
           std::size_t least_bytes_to_copy = usual_least_bytes_to_copy)
      : options_(options),
        ranks_(on_device(std::move(ranks), least_bytes_to_copy)),
        mesh_(mesh_shape(options.layout, ranks_->size()), *ranks_),
        resources_(run_device()),
        runner_(*options.model, runner_options(options, mesh_.shape()), mesh_, resources_.execution()),
        optimizer_(options.train.optimizer, options.train.clip, runner_.parameters(), mesh_, resources_.execution()) {
    initialize_training_state(7, runner_, optimizer_);
  }

  std::vector<Batch> batches(std::int64_t step) {
    BatchLoader loader(options_.data.path, loader_options(options_, mesh_, step * global_batch));
    std::vector<Batch> list;
    for (int m = 0; m < runner_.micro_batches(); ++m) list.push_back(loader.next());
    return list;
  }
  // Step t. `look` is called when the gradient is complete, before the update.
  Step step(
      std::int64_t t, const std::function<void()>& look = [] {}) {
    const double rate =
        learning_rate(options_.train.schedule, options_.train.optimizer.learning_rate, t, training_steps);
    const StepLoss loss = runner_.accumulate(batches(t), [&] {
      look();
      optimizer_.step(rate, t);
    });
    Step step{loss.loss_nats + loss.layer_loss, {{"all", optimizer_.gradient_norm()}}};
    for (const std::string& group : {ParameterGroupKey().clip_group, std::string(toy_clip_group)})
      step.norms[group] = optimizer_.gradient_norm(group);
    return step;
  }
  void save(const std::filesystem::path& root, std::int64_t step) {
    save_training_state(root, *options_.model, "", {step, step * global_batch, step * global_batch * sequence_length},
                        runner_, optimizer_, {}, mesh_.world());
  }
  std::int64_t load(const std::filesystem::path& root) {
    return load_training_state(CheckpointReader(find_checkpoint(root)), *options_.model, runner_, optimizer_,
                               mesh_.world())
        .step;
  }
  MemoryLedger estimate() {
    ModelRunnerOptions options = runner_options(options_, mesh_.shape());
    options.layout.zero_group = std::to_string(shard_count(options.layout, mesh_));
    return estimate_memory(*options_.model, options, mesh_.shape(), mesh_.rank(), resources_.execution().device);
  }
  ParameterStore& parameters() { return runner_.parameters(); }
  Communicator& ranks() { return *ranks_; }
  const Execution& execution() const { return resources_.execution(); }

 private:
  TrainerOptions options_;
  std::unique_ptr<Communicator> ranks_;
  Mesh mesh_;
  ExecutionResources resources_;
  ModelRunner runner_;
  Optimizer optimizer_;
};

// The places of a piece's elements in its logical tensor, in the piece's order.
template <class F>
void for_each_place(const Execution& execution, const ParameterPiece& piece, F&& f) {
  const std::vector<double> values = host_values(execution, piece.memory);
  for (std::size_t i = 0; i < values.size(); ++i) f(global_index(piece, static_cast<std::int64_t>(i)), values[i]);
}

Reference make_reference(const LayoutCase& layout, const std::filesystem::path& corpus) {
  LayoutCase single;
  single.model = layout.model;
  single.documents = layout.documents;
  Training training(options_of(single, corpus), make_self_communicator());
  Reference reference;
  const auto keep_gradients = [&] {
    for (const ParameterPiece& piece : training.parameters().pieces(training.parameters().flat_gradients())) {
      std::vector<double>& whole = reference.gradients[piece.tensor];
      whole.resize(static_cast<std::size_t>(elements_of(piece.global_shape)));
      double& largest = reference.largest[piece.tensor];
      for_each_place(training.execution(), piece, [&](std::int64_t place, double value) {
        whole[static_cast<std::size_t>(place)] = value;
        largest = std::max(largest, std::abs(value));
      });
    }
  };
  for (int t = 0; t < training_steps; ++t) {
    reference.steps.push_back(t == 0 ? training.step(t, keep_gradients) : training.step(t));
  }
  return reference;
}

// Each rank compares what it holds; together they hold every element of every parameter.
void expect_equal_gradients(Training& training, const Reference& reference, Communicator& ranks) {
  const ParameterStore& parameters = training.parameters();
  std::map<std::string, std::vector<std::uint8_t>> held;
  for (const auto& [name, whole] : reference.gradients) held[name].resize(whole.size());
  for (const ParameterPiece& piece : parameters.pieces(parameters.flat_gradients())) {
    const std::vector<double>& whole = reference.gradients.at(piece.tensor);
    std::vector<std::uint8_t>& places = held.at(piece.tensor);
    double difference = 0.0;
    bool finite = true;
    for_each_place(training.execution(), piece, [&](std::int64_t place, double value) {
      finite = finite && std::isfinite(value);
      difference = std::max(difference, std::abs(value - whole[static_cast<std::size_t>(place)]));
      places[static_cast<std::size_t>(place)] = 1;
    });
    EXPECT_TRUE(finite) << piece.tensor;
    EXPECT_GT(reference.largest.at(piece.tensor), 0.0) << piece.tensor;
    EXPECT_LE(difference, tolerance() * reference.largest.at(piece.tensor)) << piece.tensor;
  }
  for (auto& [name, places] : held) {
    ranks.all_reduce(Tensor(places.data(), DType::uint8, {static_cast<std::int64_t>(places.size())}), ReduceOp::max,
                     {});
    EXPECT_EQ(std::ranges::count(places, 1), static_cast<std::ptrdiff_t>(places.size()))
        << "elements of " << name << " that no rank holds";
  }
}

void expect_equal_step(
    Training& training, int t, const Reference& reference, const std::function<void()>& look = [] {}) {
  const Step step = training.step(t, look);
  const Step& expected = reference.steps[static_cast<std::size_t>(t)];
  EXPECT_NEAR(step.loss, expected.loss, tolerance() * expected.loss) << "loss of step " << t;
  for (const auto& [group, norm] : expected.norms)
    EXPECT_NEAR(step.norms.at(group), norm, tolerance() * norm) << "norm of " << group << " at step " << t;
}

// Kind by kind, what the estimate says that this rank holds is what its ledger has seen. Documents end within samples
// here, which may take less scratch memory.
void expect_estimated(Training& training) {
  const MemoryLedger held = *training.execution().ledger;
  const MemoryLedger planned = training.estimate();
  const auto within = [](std::size_t value) { return 0.03 * static_cast<double>(value); };
  for (std::size_t k = 0; k < memory_kinds; ++k) {
    const auto kind = static_cast<MemoryKind>(k);
    if (testing::on_gpu() && kind == MemoryKind::workspace) continue;
    EXPECT_NEAR(static_cast<double>(planned.peak(kind)), static_cast<double>(held.peak(kind)), within(held.peak(kind)))
        << name_of(kind) << ": counted, and held";
  }
}

// A corpus of random tokens in documents of 1 to 40 tokens, in several shards.
void write_corpus(const std::filesystem::path& folder) {
  CorpusManifest manifest;
  manifest.vocabulary = 90;
  CorpusWriter writer(folder, manifest, 700);
  const RandomStream random(3, "layouts");
  std::uint64_t next = 0;
  for (int document = 0; document < 200; ++document) {
    std::vector<std::int32_t> tokens(1 + random.bits(next++) % 40);
    for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(random.bits(next++) % 90);
    writer.append(tokens);
    writer.end_document();
  }
  writer.finish({});
}

// Shared by the cases: a corpus, one rank's results, and the checkpoint of the previous case.
class Layouts : public ::testing::TestWithParam<LayoutCase> {
 public:
  static void SetUpTestSuite() {
    Communicator& world = test_world();
    if (over_nccl() && gpu::device_count() < world.size()) {
      std::printf("No test was run, no GPU for each of %d ranks: there are %d\n", world.size(), gpu::device_count());
      GTEST_SKIP();
    }
    toy_.emplace(ModelFamily{std::make_shared<const ToyConfig>(), {}});
    if (world.rank() == 0) temporary_.emplace();
    folder_ = world.broadcast_text(temporary_ ? temporary_->path().string() : "", 0);
    if (temporary_) {
      std::filesystem::create_directory(folder_ / "corpus");
      write_corpus(folder_ / "corpus");
    }
    world.barrier();
  }
  static void TearDownTestSuite() {
    test_world().barrier();
    temporary_.reset();
    toy_.reset();
  }

 protected:
  inline static std::optional<AdditionalFamily> toy_;
  inline static std::optional<testing_support::TemporaryFolder> temporary_;
  inline static std::filesystem::path folder_;
  inline static std::map<std::pair<std::string, bool>, Reference> references_;
  inline static std::map<std::pair<std::string, bool>, std::filesystem::path> last_checkpoint_;
  inline static int number_ = 0;
};

TEST_P(Layouts, GradientsStepsAndResumeEqualOneRanks) {
  Communicator& world = test_world();
  const LayoutCase& layout = GetParam();
  SCOPED_TRACE(layout.describe());
  const std::pair key{layout.model, layout.documents};
  if (!references_.contains(key)) references_.emplace(key, make_reference(layout, folder_ / "corpus"));
  const Reference& reference = references_.at(key);
  const std::filesystem::path saved = folder_ / fmt::format("checkpoints-{}", number_++);
  const std::filesystem::path previous = std::exchange(last_checkpoint_[key], saved);
  if (world.rank() < layout.shape.ranks()) {
    std::vector<int> members(static_cast<std::size_t>(layout.shape.ranks()));
    std::iota(members.begin(), members.end(), 0);
    // The small operations of these models would all use NCCL's kernels: in every second case they use copy
    // engines.
    Training training(options_of(layout, folder_ / "corpus"), world.subgroup(members),
                      number_ % 2 == 0 ? 1 : usual_least_bytes_to_copy);
    bool looked = false;
    expect_equal_step(training, 0, reference, [&] {
      expect_equal_gradients(training, reference, training.ranks());
      looked = true;
    });
    EXPECT_TRUE(looked);
    for (int t = 1; t < training_steps; ++t) {
      expect_equal_step(training, t, reference);
      if (t + 1 == resumed_after) training.save(saved, resumed_after);
    }
    expect_estimated(training);
    if (!previous.empty()) {
      EXPECT_EQ(training.load(previous), resumed_after);
      for (int t = resumed_after; t < training_steps; ++t) expect_equal_step(training, t, reference);
    }
  }
  world.barrier();
  if (world.rank() == 0 && !previous.empty()) std::filesystem::remove_all(previous);
}

INSTANTIATE_TEST_SUITE_P(Matrix, Layouts, ::testing::ValuesIn(cases_to_run()));

}  // namespace
}  // namespace fulmen
