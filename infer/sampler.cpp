// Temperature, top-k and top-p, in double precision.
#include "infer/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "framework/error.h"

namespace fulmen {

namespace {

struct Candidate {
  double logit;
  std::int64_t token;
};

// Whether `a` comes before `b`: likelier, or as likely with the smaller id.
bool before(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}
bool after(const Candidate& a, const Candidate& b) { return before(b, a); }

std::vector<Candidate> candidates_of(const Tensor& logits) {
  FULMEN_CHECK(logits.rank() == 1 && logits.elements() > 0 && logits.device() == Device::cpu(), "logits: {}",
               logits.describe());
  std::vector<Candidate> candidates(static_cast<std::size_t>(logits.elements()));
  dispatch_fp32_fp64(logits.dtype(), [&]<class T>(T) {
    const T* values = logits.as<T>();
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      candidates[i] = {static_cast<double>(values[static_cast<std::int64_t>(i) * logits.stride(0)]),
                       static_cast<std::int64_t>(i)};
    }
  });
  for (const Candidate& candidate : candidates) {
    if (std::isnan(candidate.logit) || candidate.logit == std::numeric_limits<double>::infinity()) {
      throw DivergedError(fmt::format("the logit of token {} is {}: the model's weights are damaged or have diverged",
                                      candidate.token, candidate.logit));
    }
  }
  return candidates;
}

void keep_top_k(std::vector<Candidate>& candidates, std::int64_t k) {
  if (k == 0 || static_cast<std::size_t>(k) >= candidates.size()) return;
  std::partial_sort(candidates.begin(), candidates.begin() + k, candidates.end(), before);
  candidates.resize(static_cast<std::size_t>(k));
}

// The likeliest candidates in order until their weights sum to `enough`. A heap yields them one by one: most often few
// of many.
template <class Weight>
void keep_top_p(std::vector<Candidate>& candidates, double enough, Weight weight) {
  std::vector<Candidate> kept;
  std::make_heap(candidates.begin(), candidates.end(), after);
  for (double sum = 0.0; sum < enough && !candidates.empty();) {
    std::pop_heap(candidates.begin(), candidates.end(), after);
    kept.push_back(candidates.back());
    candidates.pop_back();
    sum += weight(kept.back());
  }
  candidates = std::move(kept);
}

}  // namespace

Sampler::Sampler(const SamplingOptions& options) : options_(options), stream_(options.seed, "generate") {
  if (!(options.temperature >= 0.0) || std::isinf(options.temperature)) {
    throw UserError("temperature", fmt::format("is {}", options.temperature),
                    "give a number from 0 (the likeliest token)");
  }
  if (options.top_k < 0) {
    throw UserError("top-k", fmt::format("is {}", options.top_k), "give a number from 1, or 0 for all tokens");
  }
  if (!(options.top_p > 0.0 && options.top_p <= 1.0)) {
    throw UserError("top-p", fmt::format("is {}", options.top_p), "give a number above 0 and up to 1");
  }
}

std::int64_t Sampler::sample(const Tensor& logits, std::int64_t position) const {
  std::vector<Candidate> candidates = candidates_of(logits);
  const Candidate likeliest = *std::max_element(candidates.begin(), candidates.end(), after);
  if (std::isinf(likeliest.logit)) throw DivergedError("every logit is minus infinity: no token is possible");
  if (options_.temperature == 0.0) return likeliest.token;

  const auto weight = [&](const Candidate& candidate) {
    return std::exp((candidate.logit - likeliest.logit) / options_.temperature);
  };
  const auto total_weight = [&] {
    double total = 0.0;
    for (const Candidate& candidate : candidates) total += weight(candidate);
    return total;
  };
  keep_top_k(candidates, options_.top_k);
  if (options_.top_p < 1.0) keep_top_p(candidates, options_.top_p * total_weight(), weight);

  const double aim = stream_.uniform(static_cast<std::uint64_t>(position)) * total_weight();
  double sum = 0.0;
  std::int64_t chosen = likeliest.token;
  for (const Candidate& candidate : candidates) {
    const double w = weight(candidate);
    if (w == 0.0) continue;  // ruled out, even when rounding carries the aim past the last
    chosen = candidate.token;
    sum += w;
    if (sum > aim) break;
  }
  return chosen;
}

}  // namespace fulmen
