// Text to be made into a corpus. The first byte chooses the file's name and how documents are told apart. The rest is
// the file: plain, JSON lines, or either of them compressed.
#include <array>

#include "data/text_source.h"
#include "tests/fuzz/scratch.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fulmen;
  if (size == 0) return 0;
  static constexpr std::array<const char*, 6> names = {"a.txt",      "a.jsonl",     "a.txt.gz",
                                                       "a.jsonl.gz", "a.jsonl.zst", "a.txt.zst"};
  static constexpr std::array<DocumentSeparator, 3> separators = {DocumentSeparator::blank_line,
                                                                  DocumentSeparator::line, DocumentSeparator::file};
  const std::size_t choice = data[0] - std::size_t{'a'};
  const std::filesystem::path path = fuzz::write(names[choice % names.size()], fuzz::as_text(data + 1, size - 1));
  fuzz::accepts([&] {
    TextSourceOptions options;
    options.separator = separators[choice / names.size() % separators.size()];
    TextSource source({path}, options);
    for (TextPiece piece; source.next(piece);) {
      FULMEN_CHECK(piece.text.size() <= std::size_t{1} << 20, "a piece of {} bytes", piece.text.size());
    }
  });
  return 0;
}
