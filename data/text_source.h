// Documents of text, one after the other, from files of many kinds, in memory that does not grow with them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace fulmen {

// A document, or the next piece of a document larger than a mebibyte. A piece ends behind a line end if there is any,
// else between two characters.
struct TextPiece {
  std::string text;
  bool ends_document = true;
};

enum class DocumentSeparator { blank_line, line, file };
// "blank-line", "line" or "file". Throws UserError for another name.
DocumentSeparator parse_document_separator(const std::string& name);

struct TextSourceOptions {
  std::string json_field = "text";                              // of .jsonl: the key that holds a document
  DocumentSeparator separator = DocumentSeparator::blank_line;  // of plain text
};

// Reads files by the kinds that their names say (data/text_files.h). Plain text: lines joined by `\n` (`\r\n` is one
// line end). The last line end and empty lines before the first are left out. A blank line may hold white space.
// Documents of nothing but white space are skipped. Bytes that are not UTF-8 are handed on as they are.
class TextSource {
 public:
  TextSource(std::vector<std::filesystem::path> files, TextSourceOptions options);
  ~TextSource();
  TextSource(TextSource&&) noexcept;

  // False at the end of the last file. Throws UserError for a line that is not a JSON object with that field, naming
  // file and line. Also for damaged or truncated compressed data, bytes that are not UTF-8 text (check_text_head), and
  // unreadable files.
  bool next(TextPiece& piece);
  std::int64_t blank_documents() const;  // of JSON lines, skipped so far
  std::int64_t file_bytes_read() const;  // of all files so far, as they are stored

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fulmen
