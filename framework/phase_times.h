// How long the phases of a start took: one line in the log.
#pragma once

#include <chrono>
#include <string>
#include <utility>
#include <vector>

namespace fulmen {

class PhaseTimes {
 public:
  // Runs f and adds its seconds to the phase, which keeps the place of its first mention.
  template <class F>
  auto run(const std::string& phase, F&& f) {
    struct Timer {
      PhaseTimes& times;
      const std::string& phase;
      std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
      ~Timer() { times.add(phase, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()); }
    } const timer{*this, phase};
    return f();
  }
  void add(const std::string& phase, double seconds) { entry(phase).second += seconds; }
  void set(const std::string& phase, double seconds) { entry(phase).second = seconds; }
  const std::vector<std::pair<std::string, double>>& phases() const { return phases_; }
  // "MPI 0.21 s, device 0.00 s, ..."
  std::string describe() const;

 private:
  std::pair<std::string, double>& entry(const std::string& phase);

  std::vector<std::pair<std::string, double>> phases_;
};

}  // namespace fulmen
