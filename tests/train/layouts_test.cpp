// Layouts do not change what is trained: over a generated matrix of data x sequence x tensor x pipeline x ZeRO x schedule x
// micro-batches x overlap x documents, the gradient of every parameter, five training steps, and a resume from a checkpoint of another layout equal
// one rank's. In fp64 on the CPU; with FULMEN_TEST_DEVICE=cuda some of the layouts in fp32, all ranks on GPU 0.
#include <algorithm>
#include <array>
#include <map>
#include <numeric>
#include <optional>
#include <utility>

#include <gtest/gtest.h>

#include "data/batch_loader.h"
#include "data/corpus_writer.h"
#include "parallel/staged_communicator.h"
#include "tests/framework/temporary_folder.h"
#include "tests/golden.h"
#include "tests/kernels/kernel_test.h"
#include "tests/mpi_main.h"
#include "train/learning_rate.h"
#include "train/optimizer.h"
#include "train/trainer.h"
#include "train/training_state.h"

namespace fulmen {
namespace {

DType test_dtype() { return testing::on_gpu() ? DType::fp32 : DType::fp64; }
double tolerance() { return testing::on_gpu() ? 1e-5 : 1e-10; }
constexpr std::int64_t global_batch = 24, sequence_length = 20;
constexpr int training_steps = 5, resumed_after = 2;

struct LayoutCase {
  bool low_rank;             // the tnl3 model with 8 heads, else the tnl1 one with 6
  bool documents;
  MeshShape shape;
  ScheduleKind schedule;
  int micro_batches;
  bool uneven;               // stages of unequal length
  Recompute recompute;
  int zero = 0;
  std::string zero_group = "all";
  std::string overlap = "auto";
  std::int64_t bucket_elements = 1;   // a layer has some 20,000
  int chunks = 1;

  friend void PrintTo(const LayoutCase& layout, std::ostream* out) { *out << layout.describe(); }
  std::string describe() const {
    return fmt::format("{}{}, {}, {}, {} micro-batches{}, recompute {}, zero {} over {}, overlap {}, buckets of {}, {} chunks",
                       low_rank ? "tnl3" : "tnl1", documents ? " with documents" : "", shape.describe(), name_of(schedule),
                       micro_batches, uneven ? ", uneven stages" : "", name_of(recompute), zero, zero_group, overlap,
                       bucket_elements, chunks);
  }
};

ModelConfig model_of(bool low_rank) {
  ModelConfig config;
  config.variant = low_rank ? "tnl3" : "tnl1";
  config.layers = 5;
  config.heads = low_rank ? 8 : 6;
  config.hidden = 8 * config.heads;
  config.glu = 50;              // neither the tensor sizes nor
  config.vocabulary = 101;      // these divide it
  config.gate_rank = low_rank ? 5 : 0;
  config.initializer_std = 0.1;
  if (low_rank) config.lrpe_layers = {0, 2};
  return config;
}

// Numbers of micro-batches that `data` ranks can have: fewer than, as many as and more than the stages, where they divide.
std::vector<int> micro_batch_counts(int data, int stages) {
  std::vector<int> counts;
  const int samples = static_cast<int>(global_batch) / data;
  for (int m = 1; m <= samples; ++m) {
    if (samples % m != 0) continue;
    const bool fewer = m < stages && (counts.empty() || counts.back() < m);
    if (fewer && !counts.empty() && counts.back() < stages) counts.back() = m;
    else if (counts.size() < 3) counts.push_back(m);
  }
  return counts;
}

// What is sharded, over whom and how it overlaps.
struct Shards {
  int zero;
  const char* group;
  const char* overlap;
};

// Every way to shard on some meshes.
void add_sharded_cases(std::vector<LayoutCase>& cases) {
  int turn = 0;
  for (const MeshShape& shape : {MeshShape{2, 1, 2, 2}, MeshShape{1, 1, 4, 2}})
    for (const Shards& shards : std::vector<Shards>{{1, "all", "auto"}, {1, "2", "auto"}, {2, "all", "none"}, {2, "all", "auto"},
                                                    {2, "2", "auto"}, {3, "all", "none"}, {3, "all", "auto"},
                                                    {3, "all", "gradients"}, {3, "all", "weights"}, {3, "2", "none"},
                                                    {3, "2", "auto"}, {3, "1", "auto"}}) {
      if (shards.group == std::string("2") && shape.data == 2) continue;   // that is all
      ++turn;
      cases.push_back({turn % 3 != 0, turn % 2 == 0, shape,
                       turn % 4 < 2 ? ScheduleKind::gpipe : ScheduleKind::one_forward_one_backward, 1 + turn % 3, false,
                       static_cast<Recompute>(turn % 3), shards.zero, shards.group, shards.overlap, turn % 5 == 0 ? 30000 : 1});
    }
}

std::vector<LayoutCase> generate_cases() {
  std::vector<LayoutCase> cases;
  int turn = 0;
  for (const bool low_rank : {false, true})
    for (const int tensor : low_rank ? std::vector<int>{1, 2, 4, 8} : std::vector<int>{1, 2, 3, 6})
      for (const int pipeline : {1, 2, 3, 4, 5})
        for (const int data : {1, 2, 3, 4, 6, 8}) {
          if (tensor * pipeline * data > 8) continue;
          for (const int micro_batches : micro_batch_counts(data, pipeline)) {
            ++turn;
            cases.push_back({low_rank, turn % 2 == 0, {tensor, 1, data, pipeline},
                             turn / 2 % 2 == 0 ? ScheduleKind::gpipe : ScheduleKind::one_forward_one_backward, micro_batches,
                             pipeline > 1 && turn % 3 == 0, static_cast<Recompute>(turn / 3 % 3)});
            LayoutCase& added = cases.back();
            if (data == 1) continue;
            added.zero = turn / 2 % 4;
            added.zero_group = data % 2 == 0 && turn % 3 == 0 ? "2" : "all";
            added.overlap = turn % 5 < 2 ? "none" : "auto";
            added.bucket_elements = turn % 3 == 0 ? 30000 : 1;
          }
        }
  // Sequences shared by every number of ranks, most of which do not divide their 20 tokens, alone and with the other axes;
  // each combination with one of the models.
  for (const bool low_rank : {false, true}) {
    int place = low_rank ? 1 : 0;
    for (const int sequence : {2, 3, 4, 5, 6, 7, 8})
      for (const MeshShape& others : {MeshShape{}, MeshShape{2, 1, 1, 1}, MeshShape{1, 1, 2, 1}, MeshShape{1, 1, 1, 2},
                                      MeshShape{2, 1, 1, 2}, MeshShape{1, 1, 2, 2}}) {
        if (sequence * others.ranks() > 8 || ++place % 2 == 0) continue;
        ++turn;
        const MeshShape shape = {others.tensor, sequence, others.data, others.pipeline};
        cases.push_back({low_rank, turn % 3 != 0, shape,
                         turn / 2 % 2 == 0 ? ScheduleKind::gpipe : ScheduleKind::one_forward_one_backward,
                         std::array{1, 3, 4}[static_cast<std::size_t>(turn) % 3], false,
                         static_cast<Recompute>(turn / 3 % 3), turn / 4 % 4, "all",
                         turn % 2 == 0 ? "none" : turn % 4 == 1 ? "sequence" : "auto"});
      }
  }
  add_sharded_cases(cases);
  // Schedules that interleave model chunks or let weight gradients wait, over numbers of micro-batches that ranks do not
  // divide, with transfers that go on beside passes and without.
  for (const bool low_rank : {false, true})
    for (const ScheduleKind schedule : {ScheduleKind::interleaved, ScheduleKind::zero_bubble})
      for (const auto& [shape, chunks] :
           {std::pair{MeshShape{1, 1, 1, 2}, 2}, {MeshShape{2, 1, 2, 2}, 2}, {MeshShape{1, 2, 2, 2}, 2}, {MeshShape{2, 2, 1, 2}, 2},
            {MeshShape{1, 1, 2, 3}, 1}, {MeshShape{2, 1, 1, 4}, 1}, {MeshShape{1, 1, 1, 5}, 1}, {MeshShape{1, 1, 1, 4}, 1}}) {
        ++turn;
        cases.push_back({low_rank, turn % 3 == 0, shape, schedule, std::array{3, 4, 6, 1, 12}[static_cast<std::size_t>(turn) % 5],
                         turn % 4 == 0, static_cast<Recompute>(turn % 3), turn % 4, "all",
                         turn / 2 % 2 == 0 ? "auto" : turn % 2 == 0 ? "pipeline" : "none", turn % 3 == 0 ? 30000 : 1, chunks});
      }
  return cases;
}

// On the GPU, which all ranks share, one of a few: a stride that all properties are prime to.
std::vector<LayoutCase> cases_to_run() {
  const std::vector<LayoutCase> cases = generate_cases();
  if (!testing::on_gpu()) return cases;
  constexpr std::size_t stride = 5;
  std::vector<LayoutCase> chosen;
  for (std::size_t i = 0; i < cases.size(); i += stride) chosen.push_back(cases[i]);
  return chosen;
}

TrainerOptions options_of(const LayoutCase& layout, const std::filesystem::path& corpus) {
  TrainerOptions options;
  options.model = model_of(layout.low_rank);
  options.layout.tensor = layout.shape.tensor;
  options.layout.data = layout.shape.data;
  options.layout.pipeline = layout.shape.pipeline;
  options.layout.sequence = layout.shape.sequence;
  options.layout.schedule = std::string(name_of(layout.schedule));
  options.layout.recompute = std::string(name_of(layout.recompute));
  options.layout.zero = layout.zero;
  options.layout.zero_group = layout.zero_group;
  options.layout.overlap = layout.overlap;
  options.layout.bucket_elements = layout.bucket_elements;
  options.layout.chunks = layout.chunks;
  if (layout.uneven) {
    const int count = layout.shape.pipeline * layout.chunks;
    std::vector<std::int64_t> stages(static_cast<std::size_t>(count), 1);
    stages[static_cast<std::size_t>(layout.micro_batches % count)] += options.model.layers - count;
    options.layout.stages = stages;
  }
  options.precision = {test_dtype(), test_dtype()};
  options.data.path = corpus.string();
  options.data.sequence_length = sequence_length;
  options.data.reset_state_at_documents = layout.documents;
  options.train.steps = training_steps;
  options.train.global_batch = global_batch;
  options.train.micro_batch = global_batch / (layout.shape.data * layout.micro_batches);
  options.train.optimizer.learning_rate = 1e-2;
  if (test_dtype() == DType::fp32) options.train.optimizer.epsilon = 1e-3;   // keeps rounding in gradients near zero from growing
  options.train.schedule.warmup_steps = 2;
  return options;
}

// One rank's losses, norms and first gradient.
struct Reference {
  std::map<std::string, std::vector<double>> gradients;
  std::map<std::string, double> largest;   // of each gradient's magnitudes
  std::vector<double> losses, norms;
};

// A model on some ranks, stepped by hand.
class Training {
 public:
  Training(const TrainerOptions& options, std::unique_ptr<Communicator> ranks)
      : options_(options),
        ranks_(testing::on_gpu() ? make_staged_communicator(std::move(ranks), testing::test_device()) : std::move(ranks)),
        mesh_(mesh_shape(options.layout, ranks_->size()), *ranks_),
        resources_(testing::test_device()),
        runner_(options.model, runner_options(options, mesh_.shape()), mesh_, resources_.execution()),
        optimizer_(options.train.optimizer, options.train.clip, runner_.parameters(), mesh_, resources_.execution()) {
    initialize_training_state(7, runner_, optimizer_);
  }

  std::vector<Batch> batches(std::int64_t step) {
    BatchLoader loader(options_.data.path, loader_options(options_, mesh_, step * global_batch));
    std::vector<Batch> list;
    for (int m = 0; m < runner_.micro_batches(); ++m) list.push_back(loader.next());
    return list;
  }
  double gradient() { return runner_.accumulate(batches(0), {}).loss_nats; }
  std::pair<double, double> step(std::int64_t t) {
    const double rate = learning_rate(options_.train.schedule, options_.train.optimizer.learning_rate, t, training_steps);
    const StepLoss loss = runner_.accumulate(batches(t), [&] { optimizer_.step(rate, t); });
    return {loss.loss_nats, optimizer_.gradient_norm()};
  }
  void save(const std::filesystem::path& root, std::int64_t step) {
    save_training_state(root, options_.model, "", {step, step * global_batch, step * global_batch * sequence_length}, runner_,
                        optimizer_, {}, mesh_.world());
  }
  std::int64_t load(const std::filesystem::path& root) {
    return load_training_state(CheckpointReader(find_checkpoint(root)), options_.model, runner_, optimizer_, mesh_.world()).step;
  }
  ParameterStore& parameters() { return runner_.parameters(); }
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
  const std::int64_t columns = elements_of(piece.global_shape) / piece.global_shape[0];
  const std::int64_t rows = piece.memory.size(0), local_columns = piece.memory.elements() / rows;
  const std::int64_t first_column = piece.global_shape.size() == 2 ? piece.offset[1] : 0;
  const std::vector<double> values = host_values(execution, piece.memory);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < local_columns; ++c)
      f((piece.offset[0] + r) * columns + first_column + c, values[static_cast<std::size_t>(r * local_columns + c)]);
}

Reference make_reference(const LayoutCase& layout, const std::filesystem::path& corpus) {
  LayoutCase single = layout;
  single.shape = {};
  single.uneven = false;
  single.micro_batches = 1;
  single.recompute = Recompute::none;
  single.zero = 0;
  single.schedule = ScheduleKind::gpipe;
  single.chunks = 1;
  Training training(options_of(single, corpus), make_self_communicator());
  Reference reference;
  training.gradient();
  for (const ParameterPiece& piece : training.parameters().pieces(training.parameters().flat_gradients())) {
    std::vector<double>& whole = reference.gradients[piece.tensor];
    whole.resize(static_cast<std::size_t>(elements_of(piece.global_shape)));
    double& largest = reference.largest[piece.tensor];
    for_each_place(training.execution(), piece, [&](std::int64_t place, double value) {
      whole[static_cast<std::size_t>(place)] = value;
      largest = std::max(largest, std::abs(value));
    });
  }
  for (int t = 0; t < training_steps; ++t) {
    const auto [loss, norm] = training.step(t);
    reference.losses.push_back(loss);
    reference.norms.push_back(norm);
  }
  return reference;
}

void expect_equal_gradients(Training& training, const Reference& reference) {
  const ParameterStore& parameters = training.parameters();
  for (const ParameterPiece& piece : parameters.pieces(parameters.flat_gradients())) {
    const std::vector<double>& whole = reference.gradients.at(piece.tensor);
    double difference = 0.0;
    bool finite = true;
    for_each_place(training.execution(), piece, [&](std::int64_t place, double value) {
      finite = finite && std::isfinite(value);
      difference = std::max(difference, std::abs(value - whole[static_cast<std::size_t>(place)]));
    });
    EXPECT_TRUE(finite) << piece.tensor;
    EXPECT_GT(reference.largest.at(piece.tensor), 0.0) << piece.tensor;
    EXPECT_LE(difference, tolerance() * reference.largest.at(piece.tensor)) << piece.tensor;
  }
}

void expect_equal_step(Training& training, int t, const Reference& reference) {
  const auto [loss, norm] = training.step(t);
  const auto i = static_cast<std::size_t>(t);
  EXPECT_NEAR(loss, reference.losses[i], tolerance() * reference.losses[i]) << "loss of step " << t;
  EXPECT_NEAR(norm, reference.norms[i], tolerance() * reference.norms[i]) << "norm of step " << t;
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

// What the cases share: a corpus, one rank's results, and the checkpoint that the case before left.
class Layouts : public ::testing::TestWithParam<LayoutCase> {
 public:
  static void SetUpTestSuite() {
    Communicator& world = test_world();
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
  }

 protected:
  inline static std::optional<testing_support::TemporaryFolder> temporary_;
  inline static std::filesystem::path folder_;
  inline static std::map<std::pair<bool, bool>, Reference> references_;
  inline static std::map<std::pair<bool, bool>, std::filesystem::path> last_checkpoint_;
  inline static int number_ = 0;
};

TEST_P(Layouts, GradientsStepsAndResumeEqualOneRanks) {
  Communicator& world = test_world();
  const LayoutCase& layout = GetParam();
  SCOPED_TRACE(layout.describe());
  const std::pair key{layout.low_rank, layout.documents};
  if (!references_.contains(key)) references_.emplace(key, make_reference(layout, folder_ / "corpus"));
  const Reference& reference = references_.at(key);
  const std::filesystem::path saved = folder_ / fmt::format("checkpoints-{}", number_++);
  const std::filesystem::path previous = std::exchange(last_checkpoint_[key], saved);
  if (world.rank() < layout.shape.ranks()) {
    std::vector<int> members(static_cast<std::size_t>(layout.shape.ranks()));
    std::iota(members.begin(), members.end(), 0);
    Training training(options_of(layout, folder_ / "corpus"), world.subgroup(members));
    const double loss = training.gradient();
    EXPECT_NEAR(loss, reference.losses[0], tolerance() * reference.losses[0]);
    expect_equal_gradients(training, reference);
    for (int t = 0; t < training_steps; ++t) {
      expect_equal_step(training, t, reference);
      if (t + 1 == resumed_after) training.save(saved, resumed_after);
    }
    if (!previous.empty()) {
      EXPECT_EQ(training.load(previous), resumed_after);
      for (int t = resumed_after; t < training_steps; ++t) expect_equal_step(training, t, reference);
    }
  }
  world.barrier();
  if (world.rank() == 0 && !previous.empty()) std::filesystem::remove_all(previous);
}

INSTANTIATE_TEST_SUITE_P(Matrix, Layouts, ::testing::ValuesIn(cases_to_run()));

TEST(LayoutMatrix, HoldsWhatItPromises) {
  const std::vector<LayoutCase> cases = cases_to_run();
  const auto count = [&](auto&& condition) { return std::ranges::count_if(cases, condition); };
  const std::int64_t some = testing::on_gpu() ? 1 : 5;
  EXPECT_GE(cases.size(), testing::on_gpu() ? 30u : 100u);
  EXPECT_GE(count([](const LayoutCase& c) { return c.shape.tensor == 3; }), some);
  EXPECT_GE(count([](const LayoutCase& c) { return c.shape.pipeline == 3; }), some);
  EXPECT_GE(count([](const LayoutCase& c) { return c.shape.ranks() == 8; }), 2 * some);
  EXPECT_GE(count([](const LayoutCase& c) { return c.micro_batches < c.shape.pipeline; }), some);
  EXPECT_GE(count([](const LayoutCase& c) { return c.micro_batches == c.shape.pipeline; }), some);
  EXPECT_GE(count([](const LayoutCase& c) { return c.micro_batches > c.shape.pipeline; }), some);
  for (const ScheduleKind schedule : {ScheduleKind::interleaved, ScheduleKind::zero_bubble}) {
    EXPECT_GE(count([&](const LayoutCase& c) { return c.schedule == schedule && c.chunks > 1; }), some);
    EXPECT_GE(count([&](const LayoutCase& c) { return c.schedule == schedule && c.overlap != "none"; }), some);
  }
  for (const Recompute recompute : {Recompute::selective, Recompute::full})
    EXPECT_GE(count([&](const LayoutCase& c) { return c.recompute == recompute && c.shape.pipeline > 1; }), some);
  EXPECT_GE(count([](const LayoutCase& c) { return c.shape.data > 1 && c.shape.tensor > 1 && c.shape.pipeline > 1; }), some);
  for (int zero = 1; zero <= 3; ++zero)
    for (const char* overlap : {"none", "auto"}) {
      EXPECT_GE(count([&](const LayoutCase& c) { return c.zero == zero && c.overlap == overlap && c.shape.data > 1; }), 2 * some);
      EXPECT_GE(count([&](const LayoutCase& c) { return c.zero == zero && c.zero_group == "2" && c.shape.data > 2; }), some / 2);
    }
}

}  // namespace
}  // namespace fulmen
