// Flat storage of parameters and gradients.
#include "model/parameter_store.h"

#include <algorithm>
#include <type_traits>

#include "framework/transfer.h"
#include "kernels/elementwise.h"

namespace fulmen {

namespace {

constexpr std::int64_t alignment = 64;   // elements

std::int64_t round_up(std::int64_t n) { return (n + alignment - 1) / alignment * alignment; }

// What of one local segment lies in a window of the local matrix's rows: f(global index in the logical tensor, index in the
// window).
template <class F>
void for_each_element(const ParameterDeclaration& declaration, const LocalLayout& layout, const LocalSegment& local,
                      IndexRange window, F&& f) {
  const Segment& segment = declaration.segments[local.segment];
  const Shape& shape = declaration.tensor(segment.tensor).shape;
  const std::int64_t global_columns = elements_of(shape) / shape[0];
  const bool by_rows = declaration.dimension == 0;
  const std::int64_t begin = local.local_begin, end = begin + local.indices.size();
  const std::int64_t shift = segment.tensor_offset + local.indices.begin - begin;   // from local to global
  const IndexRange rows = by_rows ? IndexRange{std::max(begin, window.begin), std::min(end, window.end)} : window;
  const IndexRange columns = by_rows ? IndexRange{0, layout.columns} : IndexRange{begin, end};
#pragma omp parallel for schedule(static)
  for (std::int64_t r = rows.begin; r < rows.end; ++r)
    for (std::int64_t c = columns.begin; c < columns.end; ++c)
      f(by_rows ? (r + shift) * global_columns + c : r * global_columns + c + shift, (r - window.begin) * layout.columns + c);
}

template <class T>
T rounded(double value) {
  if constexpr (std::is_same_v<T, BFloat16>)
    return to_bfloat16(static_cast<float>(value));
  else
    return static_cast<T>(value);
}

// Fills a weight from its initialisers, some rows at a time: the host copy stays small.
template <class T>
void initialize_weight(const Execution& execution, const ParameterDeclaration& declaration, const LocalLayout& layout,
                       std::uint64_t seed, const Tensor& weight) {
  constexpr std::int64_t window_elements = std::int64_t{1} << 20;
  const std::int64_t step = std::max<std::int64_t>(1, window_elements / std::max<std::int64_t>(1, layout.columns));
  std::vector<T> values;
  for (std::int64_t begin = 0; begin < layout.rows; begin += step) {
    const IndexRange window{begin, std::min(begin + step, layout.rows)};
    values.assign(static_cast<std::size_t>(window.size() * layout.columns), T{});
    for (const LocalSegment& local : layout.segments) {
      const LogicalTensor& tensor = declaration.tensor(declaration.segments[local.segment].tensor);
      const RandomStream random(seed, tensor.name);
      for_each_element(declaration, layout, local, window, [&](std::int64_t global, std::int64_t place) {
        values[static_cast<std::size_t>(place)] = rounded<T>(tensor.initializer(random, global));
      });
    }
    copy_to_device(execution, values.data(), weight.slice(0, window.begin, window.end));
  }
}

}  // namespace

ParameterStore::ParameterStore(std::vector<ParameterDeclaration> declarations, const Mesh& mesh, Precision precision,
                               const Execution& execution)
    : declarations_(std::move(declarations)),
      precision_(precision),
      tensor_coordinate_(mesh.coordinate(Axis::tensor)),
      pipeline_coordinate_(mesh.coordinate(Axis::pipeline)),
      replica_(mesh.coordinate(Axis::data) * mesh.size(Axis::sequence) + mesh.coordinate(Axis::sequence)),
      replicas_(mesh.size(Axis::data) * mesh.size(Axis::sequence)) {
  for (ParameterId id = 0; id < declarations_.size(); ++id) {
    const ParameterDeclaration& declaration = declarations_[id];
    FULMEN_CHECK(ids_.emplace(declaration.name, id).second, "parameter {} is declared twice", declaration.name);
    layouts_.push_back(local_layout(declaration, mesh.size(Axis::tensor), tensor_coordinate_));
    auto group = std::find_if(groups_.begin(), groups_.end(), [&](const ParameterGroup& g) { return g.key == declaration.group; });
    if (group == groups_.end()) {
      groups_.emplace_back();
      groups_.back().key = declaration.group;
      group = groups_.end() - 1;
    }
    places_.push_back({static_cast<std::size_t>(group - groups_.begin()), group->elements});
    const std::int64_t begin = group->elements;
    group->elements += round_up(layouts_[id].rows * layouts_[id].columns);
    if (!counted(id)) continue;
    if (!group->counted.empty() && group->counted.back().end == begin)
      group->counted.back().end = group->elements;
    else
      group->counted.push_back({begin, group->elements});
  }
  for (ParameterGroup& group : groups_) {
    const DType weights = group.key.wide ? DType::fp64 : precision.parameters;
    const DType gradients = group.key.wide ? DType::fp64 : precision.gradients;
    group.weights = OwnedTensor(execution.device, weights, {group.elements}, MemoryKind::weights, *execution.ledger);
    group.gradients = OwnedTensor(execution.device, gradients, {group.elements}, MemoryKind::gradients, *execution.ledger);
  }
  unwritten_.assign(declarations_.size(), false);
}

ParameterId ParameterStore::id(const std::string& name) const {
  const auto found = ids_.find(name);
  FULMEN_CHECK(found != ids_.end(), "parameter {} was not declared on this rank", name);
  return found->second;
}

Tensor ParameterStore::view(ParameterId id, const Tensor& flat) const {
  const LocalLayout& layout = layouts_[id];
  const std::int64_t begin = places_[id].offset;
  return flat.slice(0, begin, begin + layout.rows * layout.columns).reshape({layout.rows, layout.columns});
}

Tensor ParameterStore::weight(ParameterId id) const { return view(id, groups_[places_[id].group].weights); }
Tensor ParameterStore::gradient(ParameterId id) const { return view(id, groups_[places_[id].group].gradients); }

bool ParameterStore::counted(ParameterId id) const {
  const ParameterDeclaration& declaration = declarations_[id];
  if (declaration.along(Axis::tensor) != AxisPlacement::split && tensor_coordinate_ != 0) return false;
  if (declaration.along(Axis::pipeline) != AxisPlacement::shared) return true;
  return declaration.shared_stages.front() == pipeline_coordinate_;
}

void ParameterStore::initialize(std::uint64_t seed, const Execution& execution, const std::vector<Tensor>& flat) const {
  for (ParameterId id = 0; id < declarations_.size(); ++id) {
    const Tensor weight = view(id, flat[places_[id].group]);
    const auto fill = [&]<class T>(T) { initialize_weight<T>(execution, declarations_[id], layouts_[id], seed, weight); };
    if (weight.dtype() == DType::bf16)
      fill(BFloat16{});
    else
      dispatch_fp32_fp64(weight.dtype(), fill);
  }
}

void ParameterStore::zero_gradients(const Execution& execution) {
  for (ParameterGroup& group : groups_)
    if (group.key.wide) fill_zero(execution, group.gradients);
  for (ParameterId id = 0; id < declarations_.size(); ++id) unwritten_[id] = !declarations_[id].group.wide;
}

std::vector<ParameterPiece> ParameterStore::pieces(const std::vector<Tensor>& flat) const {
  std::vector<ParameterPiece> list;
  int turn = 0;
  for (ParameterId id = 0; id < declarations_.size(); ++id) {
    const ParameterDeclaration& declaration = declarations_[id];
    const Tensor matrix = view(id, flat[places_[id].group]);
    for (const LocalSegment& local : layouts_[id].segments) {
      if (local.indices.size() == 0) continue;
      const Segment& segment = declaration.segments[local.segment];
      ParameterPiece piece;
      piece.tensor = segment.tensor;
      piece.global_shape = declaration.tensor(segment.tensor).shape;
      piece.offset.assign(piece.global_shape.size(), 0);
      piece.offset[static_cast<std::size_t>(declaration.dimension)] = segment.tensor_offset + local.indices.begin;
      const std::int64_t end = local.local_begin + local.indices.size();
      if (declaration.dimension == 0) {
        Shape shape = piece.global_shape;
        shape[0] = local.indices.size();
        piece.memory = matrix.slice(0, local.local_begin, end).reshape(shape);
      } else {
        FULMEN_CHECK(piece.global_shape.size() == 2, "{} is split by columns but is no matrix", segment.tensor);
        piece.memory = matrix.slice(1, local.local_begin, end);
      }
      piece.owned = counted(id) && turn % replicas_ == replica_;
      ++turn;
      list.push_back(std::move(piece));
    }
  }
  return list;
}

std::vector<Tensor> ParameterStore::flat_weights() const {
  std::vector<Tensor> flat;
  for (const ParameterGroup& group : groups_) flat.push_back(group.weights);
  return flat;
}

std::vector<Tensor> ParameterStore::flat_gradients() const {
  std::vector<Tensor> flat;
  for (const ParameterGroup& group : groups_) flat.push_back(group.gradients);
  return flat;
}

}  // namespace fulmen
