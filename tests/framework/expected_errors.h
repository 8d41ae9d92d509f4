// A test's description of an error that it expects.
#pragma once

#include <exception>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace fulmen::testing_support {

// The message of the error of type E that f throws; a failure when it throws none.
template <class E, class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const E& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another type of error: " << error.what();
    return {};
  }
  ADD_FAILURE() << "no error";
  return {};
}

inline void expect_mentions(const std::string& message, const std::vector<std::string>& words) {
  for (const std::string& word : words) {
    EXPECT_NE(message.find(word), std::string::npos) << "'" << word << "' in:\n" << message;
  }
}

}  // namespace fulmen::testing_support
