// Flight records of a job. A zero byte begins the next file: two ranks' records, then ranks.json.
#include <array>

#include "parallel/flight_report.h"
#include "tests/fuzz/scratch.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fulmen;
  std::string_view rest = fuzz::as_text(data, size);
  for (const char* name : {"flight/rank-00000.json", "flight/rank-00001.json", "flight/ranks.json"}) {
    const std::size_t end = std::min(rest.find('\0'), rest.size());
    fuzz::write(name, rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  const std::filesystem::path folder = fuzz::scratch() / "flight";
  fuzz::accepts([&] {
    report_flight(folder);
    report_flight(folder, {0, 3});
    flight_records(folder, 4);
  });
  return 0;
}
