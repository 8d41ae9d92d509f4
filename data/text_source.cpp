// Lines out of streams, documents out of lines.
#include "data/text_source.h"

#include <cstring>
#include <deque>
#include <optional>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "data/input_stream.h"
#include "data/text_files.h"
#include "framework/error.h"
#include "framework/json_document.h"
#include "framework/text.h"

namespace fulmen {

namespace fs = std::filesystem;

namespace {

constexpr std::size_t piece_bytes = std::size_t{1} << 20;  // the most of a document at once
constexpr std::size_t read_bytes = std::size_t{1} << 18;
constexpr std::size_t json_line_bytes = std::size_t{1} << 28;  // a longer line is no document

bool is_blank(std::string_view text) { return text.find_first_not_of(" \t\r\n\v\f") == std::string_view::npos; }

// The longest prefix of at most `most` bytes that does not end inside a UTF-8 character.
std::size_t cut_between_characters(std::string_view text, std::size_t most) {
  if (text.size() <= most) return text.size();
  std::size_t end = most;
  for (int back = 0; back < 3 && end > 1 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80; ++back) --end;
  return (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80 ? most : end;
}

// Lines of a stream without their ends. A line longer than `longest` comes in fragments.
class LineReader {
 public:
  LineReader(const fs::path& path, std::size_t longest) : stream_(path), longest_(longest) {
    refill();
    check_text_head(path, std::string_view(buffer_.data(), end_));
    skip_byte_order_mark();
  }

  struct Line {
    std::string_view text;  // valid until the next call
    bool complete = true;   // false: the rest of the line follows
  };

  std::optional<Line> next() {
    for (;;) {
      const std::string_view rest(buffer_.data() + begin_, end_ - begin_);
      const std::size_t newline = rest.find('\n', searched_);
      if (newline != std::string_view::npos) return take_line(rest.substr(0, newline), newline + 1);
      searched_ = rest.size();
      // One byte more than the fragment shows whether a character, or '\r\n', would be torn.
      if (rest.size() > longest_ + 1) return take_fragment(rest);
      if (refill()) continue;
      if (begin_ == end_) return std::nullopt;
      return take_line(std::string_view(buffer_.data() + begin_, end_ - begin_), end_ - begin_);
    }
  }

  std::int64_t number() const { return number_; }  // of the line last returned, from 1
  std::int64_t file_bytes_read() const { return stream_.file_bytes_read(); }

 private:
  Line take_line(std::string_view text, std::size_t consumed) {
    if (!text.empty() && text.back() == '\r') text.remove_suffix(1);
    begin_ += consumed;
    searched_ = 0;
    begin_line();
    inside_line_ = false;
    return {text, true};
  }

  Line take_fragment(std::string_view rest) {
    std::size_t length = cut_between_characters(rest, longest_);
    if (length > 1 && rest[length - 1] == '\r') --length;
    begin_ += length;
    searched_ = 0;
    begin_line();
    inside_line_ = true;
    return {rest.substr(0, length), false};
  }

  void begin_line() {
    if (!inside_line_) ++number_;
  }

  bool refill() {
    if (begin_ > 0) {
      std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
      end_ -= begin_;
      begin_ = 0;
    }
    if (buffer_.size() < end_ + read_bytes) buffer_.resize(end_ + read_bytes);
    const std::size_t got = stream_.read(std::span(buffer_).subspan(end_, read_bytes));
    end_ += got;
    return got > 0;
  }

  void skip_byte_order_mark() {
    if (std::string_view(buffer_.data(), end_).starts_with("\xef\xbb\xbf")) begin_ = 3;
  }

  InputStream stream_;
  std::size_t longest_;
  std::vector<char> buffer_;
  std::size_t begin_ = 0, end_ = 0;  // what is not yet taken
  std::size_t searched_ = 0;         // bytes of it known to hold no line end
  std::int64_t number_ = 0;
  bool inside_line_ = false;
};

// Puts a document together from parts of text, handing full pieces on.
class DocumentBuilder {
 public:
  bool is_empty() const { return text_.empty() && !continued_; }

  // Text of the current line; a new line begins with `new_line`.
  void add(std::string_view text, bool new_line) {
    if (new_line && !is_empty()) text_ += '\n';
    if (!text_.empty() && text_.size() + text.size() > piece_bytes) emit(false);
    text_ += text;
  }

  // False when there was nothing but white space, which is no document.
  bool end() {
    const bool document = continued_ || !is_blank(text_);
    if (document) emit(true);
    text_.clear();
    continued_ = false;
    return document;
  }

  std::deque<TextPiece>& pieces() { return pieces_; }

 private:
  void emit(bool ends_document) {
    pieces_.push_back({std::exchange(text_, {}), ends_document});
    continued_ = !ends_document;
  }

  std::string text_;
  bool continued_ = false;  // pieces of this document were handed on
  std::deque<TextPiece> pieces_;
};

std::string extract_document(std::string_view line, const std::string& field, const std::string& where) {
  return text_in_json_object(
      line, field, where, "every line must be a JSON object with the text under that key (--json-field names another)");
}

// Feeds a whole document in parts that end behind a line, or between characters where a line is too long. False for a
// blank document.
bool add_document(DocumentBuilder& builder, std::string_view text) {
  while (text.size() > piece_bytes) {
    const std::size_t newline = text.rfind('\n', piece_bytes - 1);
    const std::size_t length =
        newline == std::string_view::npos ? cut_between_characters(text, piece_bytes) : newline + 1;
    builder.add(text.substr(0, length), false);
    text.remove_prefix(length);
  }
  builder.add(text, false);
  return builder.end();
}

}  // namespace

DocumentSeparator parse_document_separator(const std::string& name) {
  if (name == "blank-line") return DocumentSeparator::blank_line;
  if (name == "line") return DocumentSeparator::line;
  if (name == "file") return DocumentSeparator::file;
  const std::string nearest = nearest_name(name, {"blank-line", "line", "file"});
  throw UserError("--document-separator", fmt::format("'{}' is not known", name),
                  nearest.empty() ? "choose blank-line, line or file" : fmt::format("did you mean '{}'?", nearest));
}

struct TextSource::State {
  std::vector<fs::path> files;
  TextSourceOptions options;
  std::size_t next_file = 0;
  std::optional<LineReader> lines;  // of files[next_file - 1]
  bool json = false;
  bool at_line_start = true;
  DocumentBuilder builder;
  std::int64_t bytes_of_past_files = 0, blank_documents = 0;

  const fs::path& file() const { return files[next_file - 1]; }

  void open_next() {
    const fs::path& path = files[next_file++];
    json = text_kind_of_name(path) == TextKind::json_lines;
    at_line_start = true;
    lines.emplace(path, json ? json_line_bytes : piece_bytes / 2);
  }

  void close() {
    builder.end();
    bytes_of_past_files += lines->file_bytes_read();
    lines.reset();
  }

  void take_json(const LineReader::Line& line) {
    const std::string where = fmt::format("{}:{}", file().string(), lines->number());
    if (!line.complete) {
      throw UserError(where,
                      fmt::format("the line is longer than {}", human_bytes(static_cast<double>(json_line_bytes))),
                      "split the document into several lines");
    }
    if (is_blank(line.text)) return;
    if (!add_document(builder, extract_document(line.text, options.json_field, where))) ++blank_documents;
  }

  void take_text(const LineReader::Line& line) {
    const bool line_start = std::exchange(at_line_start, line.complete);
    const bool whole = line_start && line.complete;
    if (options.separator == DocumentSeparator::blank_line && whole && is_blank(line.text)) {
      builder.end();
      return;
    }
    builder.add(line.text, line_start);
    if (options.separator == DocumentSeparator::line && line.complete) builder.end();
  }

  // Reads on until a piece is ready; false at the end of everything.
  bool produce() {
    while (builder.pieces().empty()) {
      if (!lines) {
        if (next_file == files.size()) return false;
        open_next();
      }
      const std::optional<LineReader::Line> line = lines->next();
      if (!line) {
        close();
      } else if (json) {
        take_json(*line);
      } else {
        take_text(*line);
      }
    }
    return true;
  }
};

TextSource::TextSource(std::vector<fs::path> files, TextSourceOptions options) : state_(std::make_unique<State>()) {
  state_->files = std::move(files);
  state_->options = std::move(options);
}
TextSource::~TextSource() = default;
TextSource::TextSource(TextSource&&) noexcept = default;

bool TextSource::next(TextPiece& piece) {
  if (!state_->produce()) return false;
  piece = std::move(state_->builder.pieces().front());
  state_->builder.pieces().pop_front();
  return true;
}

std::int64_t TextSource::blank_documents() const { return state_->blank_documents; }

std::int64_t TextSource::file_bytes_read() const {
  return state_->bytes_of_past_files + (state_->lines ? state_->lines->file_bytes_read() : 0);
}

}  // namespace fulmen
