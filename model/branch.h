// A residual branch as data: what it is made of, in the order of its forward pass. A mixer is a function that fills a
// BranchBuilder; BranchExecutor (model/branch_executor.h) runs any branch in every layout. A branch is
//   sum = residual + branch before it;   branch = f(norm(sum))
// (or joins the residual stream otherwise: Junction), f begins with products of the normed tokens, or other operations
// on them, and ends with contract() or deliver().
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/crossing.h"
#include "model/local_operation.h"
#include "model/parameter.h"
#include "model/residual_norm.h"

namespace fulmen {

// A value that nodes read and write: an index into Branch::values.
struct Value {
  int id = -1;
};

// A tensor [tokens, width] that a branch hands to branches behind it (model/carried.h). Both sides say the same.
struct CarriedPort {
  std::string name;
  std::int64_t width = 0;  // over all tensor ranks
  std::int64_t units = 0;  // that they share out; 0: each holds all of it

  std::int64_t local_width(int tensor_ranks, int tensor_rank) const;
};

struct ValueSpec {
  enum class Kind : std::uint8_t { normed, product, view, result, parameter, constant, carried };
  Kind kind = Kind::result;
  Value parent = {};                  // view: a product's
  std::size_t segment = 0;            // view: of the product's weight
  std::size_t parameter = 0;          // product: its weight; parameter
  std::vector<double> elements = {};  // constant: a value for each unit that tensor ranks share out
  CarriedPort carried = {};
  PortType type = PortType::activation;
  Keep keep = Keep::never;
  Value in_place_of = {};   // result: whose memory it has
  std::int64_t width = 0;   // columns over all tensor ranks
  bool replicated = false;  // all tensor ranks hold all of it
  bool differentiable = true;
  int readers = 0;
};

struct Node {
  enum class Kind : std::uint8_t { project, apply, loss, carry, contract, deliver };

  Node(Kind node_kind, std::vector<Value> reads) : kind(node_kind), inputs(std::move(reads)) {}

  Kind kind;
  std::vector<Value> inputs, outputs;
  std::vector<std::size_t> weights;  // project, contract: into Branch::parameters, as many as outputs of a project
  std::shared_ptr<const LocalOperation> operation;  // apply
  std::shared_ptr<const LossOperation> loss;
  double coefficient = 0.0;              // of the loss
  std::optional<std::size_t> bias = {};  // contract: into Branch::parameters
  CarriedPort carried;
};

struct Branch {
  Norm norm;
  Junction junction;
  std::int64_t hidden = 0;
  std::vector<ParameterDeclaration> parameters;
  std::vector<ValueSpec> values;
  std::vector<Node> nodes;

  // Weights of products in the order of their use, then what operations read themselves.
  std::vector<ParameterDeclaration> declarations() const;
  std::vector<std::int64_t> widths(const std::vector<Value>& of) const;  // over all tensor ranks
};

class BranchBuilder {
 public:
  explicit BranchBuilder(std::int64_t hidden) { branch_.hidden = hidden; }

  // The normed tokens, [tokens, hidden]. Once, and first.
  Value normed(const Norm& norm);
  // How the branch joins the residual stream, where not by plain addition.
  void join(const Junction& junction) { branch_.junction = junction; }
  // value W^T for each weight [out, in]: a value for each segment of a weight, in their order. Weights of one call read
  // their input together: all products of the normed tokens are one call. Units of a segment are shared out over the
  // tensor ranks. A weight without units is computed whole on each of them, and its gradient is partial there.
  std::vector<Value> project(Value value, std::vector<ParameterDeclaration> weights);
  // Vectors and other parameters that operations read themselves; their gradients are formed together with the
  // gradients of activations.
  Value parameter(ParameterDeclaration declaration);
  // fp64, an element for each unit (head) that the tensor ranks share out.
  Value constant(std::vector<double> elements);
  // fp64, the same on every tensor rank.
  Value shared_constant(std::vector<double> elements);
  // Reads a value that an earlier branch handed on, and hands a value on, once for each name.
  Value carried(const CarriedPort& port);
  void carry(const CarriedPort& port, Value value);
  // Results of an operation.
  std::vector<Value> apply(const std::shared_ptr<const LocalOperation>& operation, const std::vector<Value>& inputs);
  // coefficient * the mean over the samples of the operation's loss is added to what is trained on.
  void add_loss(std::shared_ptr<const LossOperation> loss, double coefficient, const std::vector<Value>& inputs);
  // The end: value W^T, W [hidden, width] split by columns, summed over the tensor ranks; and a bias [hidden]
  // (declare_norm_weight).
  void contract(Value value, ParameterDeclaration weight, std::optional<ParameterDeclaration> bias = {});

  // The other end: value [tokens, hidden] is this rank's share of the branch, summed over the tensor ranks.
  void deliver(Value value);

  // Checks that every value is read. The builder is spent.
  Branch finish();

 private:
  Value add(ValueSpec spec);
  void read(Value value);
  void read_by_product(Value value);
  Value with_memory(Value value) const;  // the product or result that a value lies in
  ValueSpec& spec(Value value) { return branch_.values[static_cast<std::size_t>(value.id)]; }
  Branch branch_;
  bool normed_projected_ = false;
};

// Operations per token of a branch's passes.
struct BranchCosts {
  double products = 0.0;      // of one pass; each half of backward takes as many again
  double last_product = 0.0;  // the part of contract
  double operations = 0.0;    // of everything else
  double backward_operations = 0.0;
  double again = 0.0;  // what Recompute::selective makes again
};
BranchCosts costs_of(const Branch& branch, std::int64_t length);

}  // namespace fulmen
