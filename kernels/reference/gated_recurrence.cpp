// The recurrence as it is defined, its adjoint, and its form over pairs of tokens.
#include "kernels/reference/gated_recurrence.h"

#include <algorithm>
#include <cmath>

namespace fulmen::reference {
namespace {

// The numbers of one head of one row, by token.
class Head {
 public:
  Head(const GatedRecurrenceProblem& problem, std::int64_t row, std::int64_t head)
      : p_(problem), row_(row), head_(head), key_head_(head / (problem.heads / problem.key_heads)) {}

  std::int64_t key_at(std::int64_t t, std::int64_t c) const {
    return ((row_ * p_.length + t) * p_.key_heads + key_head_) * p_.key_width + c;
  }
  std::int64_t value_at(std::int64_t t, std::int64_t v) const { return token_at(t) * p_.value_width + v; }
  std::int64_t token_at(std::int64_t t) const { return (row_ * p_.length + t) * p_.heads + head_; }
  std::int64_t decay_at(std::int64_t t, std::int64_t c) const {
    return p_.per_channel ? token_at(t) * p_.key_width + c : token_at(t);
  }
  std::int64_t bonus_at(std::int64_t c) const { return head_ * p_.key_width + c; }
  std::int64_t state_at(std::int64_t c, std::int64_t v) const {
    return ((row_ * p_.heads + head_) * p_.key_width + c) * p_.value_width + v;
  }

  double query(std::int64_t t, std::int64_t c) const { return p_.scale * p_.query[key_at(t, c)]; }
  double key(std::int64_t t, std::int64_t c) const { return p_.key[key_at(t, c)]; }
  double value(std::int64_t t, std::int64_t v) const { return p_.value[value_at(t, v)]; }
  double decay(std::int64_t t, std::int64_t c) const { return std::exp(p_.log_decay[decay_at(t, c)]); }
  double beta(std::int64_t t) const { return p_.beta[token_at(t)]; }
  double bonus(std::int64_t c) const { return p_.bonus[bonus_at(c)]; }
  bool starts_document(std::int64_t t) const {
    return std::find(p_.segments.begin(), p_.segments.end(), row_ * p_.length + t) != p_.segments.end();
  }

 private:
  const GatedRecurrenceProblem& p_;
  std::int64_t row_, head_, key_head_;
};

using State = std::vector<double>;  // [key width, value width]

class Recurrence {
 public:
  Recurrence(const GatedRecurrenceProblem& problem, std::int64_t row, std::int64_t head)
      : p_(problem), h_(problem, row, head), keys_(problem.key_width), values_(problem.value_width) {}

  State initial(std::int64_t t) const {
    State state(keys_ * values_, 0.0);
    if (t == 0 && !p_.initial_state.empty())
      for (std::int64_t c = 0; c < keys_; ++c)
        for (std::int64_t v = 0; v < values_; ++v) state[c * values_ + v] = p_.initial_state[h_.state_at(c, v)];
    return state;
  }

  State decayed(const State& state, std::int64_t t) const {
    State result = state;
    for (std::int64_t c = 0; c < keys_; ++c)
      for (std::int64_t v = 0; v < values_; ++v) result[c * values_ + v] *= h_.decay(t, c);
    return result;
  }

  // By the delta rule: what the value differs from what the decayed state would read.
  std::vector<double> residual(const State& decayed, std::int64_t t) const {
    std::vector<double> result(values_);
    for (std::int64_t v = 0; v < values_; ++v) {
      result[v] = h_.value(t, v);
      if (p_.beta.empty()) continue;
      for (std::int64_t c = 0; c < keys_; ++c) result[v] -= h_.key(t, c) * decayed[c * values_ + v];
    }
    return result;
  }

  double rate(std::int64_t t) const { return p_.beta.empty() ? 1.0 : h_.beta(t); }

  State advance(const State& state, std::int64_t t) const {
    State next = decayed(state, t);
    const std::vector<double> written = residual(next, t);
    for (std::int64_t c = 0; c < keys_; ++c)
      for (std::int64_t v = 0; v < values_; ++v) next[c * values_ + v] += h_.key(t, c) * rate(t) * written[v];
    return next;
  }

  void run(GatedRecurrenceResult& result) const {
    State state;
    for (std::int64_t t = 0; t < p_.length; ++t) {
      const State before = t == 0 || h_.starts_document(t) ? initial(t) : state;
      state = advance(before, t);
      for (std::int64_t v = 0; v < values_; ++v) {
        double sum = 0;
        for (std::int64_t c = 0; c < keys_; ++c) sum += h_.query(t, c) * read(before, state, t, c, v);
        result.output[h_.value_at(t, v)] = sum;
      }
    }
    for (std::int64_t c = 0; c < keys_; ++c)
      for (std::int64_t v = 0; v < values_; ++v) result.final_state[h_.state_at(c, v)] = state[c * values_ + v];
  }

  void run_back(const std::vector<double>& d_output, const std::vector<double>& d_final_state,
                GatedRecurrenceDerivatives& d) const {
    std::vector<State> before(p_.length);
    for (std::int64_t t = 0; t < p_.length; ++t)
      before[t] = t == 0 || h_.starts_document(t) ? initial(t) : advance(before[t - 1], t - 1);
    State adjoint(keys_ * values_, 0.0);
    for (std::int64_t c = 0; c < keys_ && !d_final_state.empty(); ++c)
      for (std::int64_t v = 0; v < values_; ++v) adjoint[c * values_ + v] = d_final_state[h_.state_at(c, v)];
    for (std::int64_t t = p_.length - 1; t >= 0; --t) {
      adjoint = step_back(before[t], adjoint, t, d_output, d);
      if (t > 0 && h_.starts_document(t)) std::fill(adjoint.begin(), adjoint.end(), 0.0);
    }
    for (std::int64_t c = 0; c < keys_ && !p_.initial_state.empty(); ++c)
      for (std::int64_t v = 0; v < values_; ++v) d.d_initial_state[h_.state_at(c, v)] = adjoint[c * values_ + v];
  }

 private:
  // The state as a query meets it in channel c.
  double read(const State& before, const State& after, std::int64_t t, std::int64_t c, std::int64_t v) const {
    if (p_.bonus.empty()) return after[c * values_ + v];
    return before[c * values_ + v] + h_.bonus(c) * h_.key(t, c) * h_.value(t, v);
  }

  // Takes the gradient of the state after token t; gives the gradient of the state before it.
  State step_back(const State& before, State adjoint, std::int64_t t, const std::vector<double>& d_output,
                  GatedRecurrenceDerivatives& d) const {
    const State middle = decayed(before, t), after = advance(before, t);
    const std::vector<double> written = residual(middle, t);
    State d_before(keys_ * values_, 0.0);
    for (std::int64_t c = 0; c < keys_; ++c) {
      for (std::int64_t v = 0; v < values_; ++v) {
        const double d_out = d_output[h_.value_at(t, v)], k = h_.key(t, c), q = h_.query(t, c);
        d.d_query[h_.key_at(t, c)] += p_.scale * read(before, after, t, c, v) * d_out;
        if (p_.bonus.empty()) {
          adjoint[c * values_ + v] += q * d_out;
          continue;
        }
        d_before[c * values_ + v] += q * d_out;
        d.d_bonus[h_.bonus_at(c)] += q * k * h_.value(t, v) * d_out;
        d.d_key[h_.key_at(t, c)] += q * h_.bonus(c) * h_.value(t, v) * d_out;
        d.d_value[h_.value_at(t, v)] += q * h_.bonus(c) * k * d_out;
      }
    }
    std::vector<double> d_residual(values_, 0.0);
    for (std::int64_t v = 0; v < values_; ++v) {
      double d_written = 0;
      for (std::int64_t c = 0; c < keys_; ++c) {
        d_written += h_.key(t, c) * adjoint[c * values_ + v];
        d.d_key[h_.key_at(t, c)] += rate(t) * written[v] * adjoint[c * values_ + v];
      }
      d_residual[v] = rate(t) * d_written;
      d.d_value[h_.value_at(t, v)] += d_residual[v];
      if (!p_.beta.empty()) d.d_beta[h_.token_at(t)] += d_written * written[v];
    }
    for (std::int64_t c = 0; c < keys_; ++c) {
      for (std::int64_t v = 0; v < values_; ++v) {
        double d_middle = adjoint[c * values_ + v];
        if (!p_.beta.empty()) {
          d.d_key[h_.key_at(t, c)] -= middle[c * values_ + v] * d_residual[v];
          d_middle -= h_.key(t, c) * d_residual[v];
        }
        d.d_log_decay[h_.decay_at(t, c)] += middle[c * values_ + v] * d_middle;
        d_before[c * values_ + v] += h_.decay(t, c) * d_middle;
      }
    }
    return d_before;
  }

  const GatedRecurrenceProblem& p_;
  Head h_;
  std::int64_t keys_, values_;
};

// One document of one head, tokens [begin, end).
class Pairs {
 public:
  Pairs(const GatedRecurrenceProblem& problem, std::int64_t row, std::int64_t head, std::int64_t begin,
        std::int64_t end)
      : p_(problem), h_(problem, row, head), begin_(begin), end_(end) {}

  void run(std::vector<double>& output) const {
    // written[t]: what token t adds to the state, of each value channel.
    std::vector<std::vector<double>> written(p_.length, std::vector<double>(p_.value_width));
    for (std::int64_t t = begin_; t < end_; ++t) {
      for (std::int64_t v = 0; v < p_.value_width; ++v) written[t][v] = h_.value(t, v);
      if (p_.beta.empty()) continue;
      for (std::int64_t v = 0; v < p_.value_width; ++v) written[t][v] -= from_initial(t, t + 1, true, v);
      for (std::int64_t s = begin_; s < t; ++s) {
        const double pair = score(t, s, t + 1, true);
        for (std::int64_t v = 0; v < p_.value_width; ++v) written[t][v] -= pair * written[s][v];
      }
      for (double& value : written[t]) value *= h_.beta(t);
    }
    for (std::int64_t t = begin_; t < end_; ++t) {
      const std::int64_t last_decay = p_.bonus.empty() ? t + 1 : t;
      for (std::int64_t v = 0; v < p_.value_width; ++v) {
        double sum = from_initial(t, last_decay, false, v);
        for (std::int64_t s = begin_; s <= t; ++s) sum += score(t, s, last_decay, false) * written[s][v];
        output[h_.value_at(t, v)] = sum;
      }
    }
  }

 private:
  // Decay over the tokens [first, last) in channel c.
  double decay(std::int64_t first, std::int64_t last, std::int64_t c) const {
    double sum = 0;
    for (std::int64_t t = first; t < last; ++t) sum += p_.log_decay[h_.decay_at(t, c)];
    return std::exp(sum);
  }
  double left(std::int64_t t, std::int64_t c, bool key) const { return key ? h_.key(t, c) : h_.query(t, c); }
  double score(std::int64_t t, std::int64_t s, std::int64_t last_decay, bool key) const {
    double sum = 0;
    for (std::int64_t c = 0; c < p_.key_width; ++c) {
      const bool bonus = s == t && !p_.bonus.empty();
      sum += left(t, c, key) * h_.key(s, c) * (bonus ? h_.bonus(c) : decay(s + 1, last_decay, c));
    }
    return sum;
  }
  double from_initial(std::int64_t t, std::int64_t last_decay, bool key, std::int64_t v) const {
    if (begin_ > 0 || p_.initial_state.empty()) return 0;
    double sum = 0;
    for (std::int64_t c = 0; c < p_.key_width; ++c)
      sum += left(t, c, key) * decay(0, last_decay, c) * p_.initial_state[h_.state_at(c, v)];
    return sum;
  }

  const GatedRecurrenceProblem& p_;
  Head h_;
  std::int64_t begin_, end_;
};

}  // namespace

GatedRecurrenceResult gated_recurrence_forward(const GatedRecurrenceProblem& problem) {
  GatedRecurrenceResult result;
  result.output.resize(problem.value.size());
  result.final_state.resize(problem.batch * problem.heads * problem.key_width * problem.value_width);
  for (std::int64_t row = 0; row < problem.batch; ++row)
    for (std::int64_t head = 0; head < problem.heads; ++head) Recurrence(problem, row, head).run(result);
  return result;
}

std::vector<double> gated_recurrence_quadratic(const GatedRecurrenceProblem& problem) {
  std::vector<double> output(problem.value.size());
  for (std::size_t s = 0; s + 1 < problem.segments.size(); ++s) {
    const std::int64_t row = problem.segments[s] / problem.length, first = row * problem.length;
    for (std::int64_t head = 0; head < problem.heads; ++head)
      Pairs(problem, row, head, problem.segments[s] - first, problem.segments[s + 1] - first).run(output);
  }
  return output;
}

GatedRecurrenceDerivatives gated_recurrence_backward(const GatedRecurrenceProblem& problem,
                                                     const std::vector<double>& d_output,
                                                     const std::vector<double>& d_final_state) {
  GatedRecurrenceDerivatives d;
  d.d_query.resize(problem.query.size()), d.d_key.resize(problem.key.size()), d.d_value.resize(problem.value.size());
  d.d_log_decay.resize(problem.log_decay.size()), d.d_beta.resize(problem.beta.size());
  d.d_bonus.resize(problem.bonus.size()), d.d_initial_state.resize(problem.initial_state.size());
  for (std::int64_t row = 0; row < problem.batch; ++row)
    for (std::int64_t head = 0; head < problem.heads; ++head)
      Recurrence(problem, row, head).run_back(d_output, d_final_state, d);
  return d;
}

}  // namespace fulmen::reference
