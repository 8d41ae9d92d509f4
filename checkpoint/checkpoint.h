// Checkpoints, version 2: a folder `step-00000500/` with a `shard-*.h5` of each writing rank and the tokeniser's file.
// The virtual datasets of `parameters.h5` show every tensor whole. `manifest.yaml` is written last. Files hold pieces
// of logical tensors with their global shapes and offsets: nothing in them depends on the layout that wrote them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "framework/tensor.h"
#include "parallel/communicator.h"

namespace fulmen {

// A hyperslab of a logical tensor.
struct TensorPiece {
  std::string name;  // "parameters/NAME", "optimizer/exp_avg/NAME", ...
  Shape global_shape;
  std::vector<std::int64_t> offset;  // of the piece in the logical tensor
  Tensor memory;                     // the piece; may be strided. Its dtype is the stored one when saving
  // Null for a piece in host memory. To save a piece from a device: copies it, row-major, to memory.bytes() bytes of
  // the host.
  std::function<void(void* host)> to_host = {};
};

// How text became the tokens that it was trained on, as far as that is known.
struct TokenizerRecord {
  std::string kind = {};                             // sentencepiece, bytes or none; empty: not known
  std::optional<std::int64_t> end_of_document = {};  // the token that ends a document
};

struct CheckpointDescription {
  std::int64_t step = 0;     // updates done
  std::int64_t tokens = 0;   // consumed
  std::int64_t samples = 0;  // consumed: the place in the sampling order
  std::map<std::string, std::string>
      model;                  // what makes it this model: family, variant, layers, hidden, ... as YAML scalars
  std::string configuration;  // the resolved configuration, YAML; may be empty (imported)
  std::string corpus = {};    // identity of what it was trained on; empty where that is not known
  TokenizerRecord tokenizer = {};
};

// Saves collectively over `communicator` into root/step-N, N of eight digits, or into `root` itself. Every rank
// writes its pieces into a temporary folder. When all agree, rank 0 writes parameters.h5 and the manifest and renames
// the folder. Every cell of every tensor must be written exactly once (checked; InternalError). `extra_files` are
// copied in by rank 0. Returns the folder. Throws UserError on all ranks when the place cannot be written or the disk
// is full; what was there before stays valid.
struct SaveOptions {
  bool exact_folder = false;  // `root` is the checkpoint folder itself
  std::vector<std::filesystem::path> extra_files;
};
std::filesystem::path save_checkpoint(const std::filesystem::path& root, const CheckpointDescription& description,
                                      const std::vector<TensorPiece>& pieces, Communicator& communicator,
                                      const SaveOptions& options = {});

// An opened checkpoint.
class CheckpointReader {
 public:
  // Reads and checks the manifest: format, version, and that every file has its size. Throws UserError.
  explicit CheckpointReader(const std::filesystem::path& folder);
  ~CheckpointReader();
  CheckpointReader(CheckpointReader&&) noexcept;

  // Compares the checksum of every file, the files dealt out over the ranks. All ranks agree on the verdict and throw
  // UserError naming the damaged file.
  void verify(Communicator& communicator) const;

  const CheckpointDescription& description() const;
  const std::filesystem::path& folder() const;
  // Which parts no checksum covers, for people: empty but for checkpoints of version 1.
  std::vector<std::string> unprotected() const;
  std::optional<std::filesystem::path> tokenizer_file() const;
  bool has(const std::string& name) const;  // "parameters/NAME"
  std::vector<std::string> names() const;
  Shape shape(const std::string& name) const;
  DType dtype(const std::string& name) const;
  // Reads the hyperslab at `offset` of `memory`'s shape, converting to its dtype. Throws UserError naming the tensor
  // when it is missing, incomplete or of another shape (global_shape is compared unless empty). So is a tensor refused
  // that lies elsewhere than in the shards that the manifest lists.
  void read(const TensorPiece& piece) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// `path` itself when it is a checkpoint, else the newest valid checkpoint (by step) in it. In a run's folder it looks
// in `checkpoints`. Throws UserError when there is none (listing what was found invalid and why).
std::filesystem::path find_checkpoint(const std::filesystem::path& path);
// The same for all ranks, as rank 0 finds it: another rank may look a moment later, when a run has saved again.
// Collective.
std::filesystem::path find_checkpoint(const std::filesystem::path& path, Communicator& communicator);
// Calls use(checkpoint) on all ranks with the checkpoint that find_checkpoint finds. A concurrent run may delete the
// newest of several before `use` is done. Then calls `use` with the newest that is there by then. `use` must fail on
// all ranks or on none. Collective.
void with_checkpoint(const std::filesystem::path& path, Communicator& communicator,
                     const std::function<void(const CheckpointReader&)>& use);
// As the first, but nothing when there is none; folders that are not valid are named in `skipped`.
std::optional<std::filesystem::path> newest_checkpoint(const std::filesystem::path& root,
                                                       std::vector<std::string>* skipped = nullptr);
// How many valid checkpoints lie directly in `root`; 0 where there is no such folder.
std::int64_t count_checkpoints(const std::filesystem::path& root);
// Deletes all but the newest `keep` valid checkpoints of root, and leftovers of interrupted saves. keep = 0 keeps all.
void prune_checkpoints(const std::filesystem::path& root, std::int64_t keep);
// Moves the valid checkpoints of root that lie after a step into a new folder in it. They are neither found nor counted
// there: a run that goes on from that step leaves their branch. That folder, if there was something to move. Throws
// UserError when it cannot.
std::optional<std::filesystem::path> set_aside_checkpoints_after(const std::filesystem::path& root, std::int64_t step);

}  // namespace fulmen
