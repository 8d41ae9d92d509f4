// Small helpers for messages.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fulmen {

// The candidate with the smallest edit distance to `word`, or "" when none is close enough to be meant.
std::string nearest_name(std::string_view word, const std::vector<std::string>& candidates);

std::string human_bytes(double bytes);       // "1.5 GiB"
std::string human_count(double count);       // "398.98 M"
std::string human_duration(double seconds);  // "3 h 12 min", "45 s"
std::string with_thousands(std::int64_t n);  // "173,524,660,224"
std::string join(const std::vector<std::string>& parts, std::string_view separator);
std::vector<std::string> split(std::string_view text, char separator);

// Text for people. Characters that would steer a terminal (control characters but line ends and tabs, bytes that are no
// UTF-8) stand as their number in hexadecimal. Names of files and what files hold come from outside: all that goes to a
// terminal passes through here.
std::string printable(std::string_view text);

// Whether these bytes are UTF-8 (RFC 3629: no overlong forms, no surrogates).
bool is_utf8(std::string_view bytes);

}  // namespace fulmen
