// Expectations on the errors that a user sees.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "framework/error.h"

namespace fulmen::testing_support {

// `action` must throw a UserError whose message holds all of `words`.
inline void expect_user_error(const std::function<void()>& action, const std::vector<std::string>& words) {
  try {
    action();
  } catch (const UserError& error) {
    const std::string message = error.what();
    EXPECT_EQ(error.code(), ExitCode::user);
    for (const std::string& word : words) {
      EXPECT_NE(message.find(word), std::string::npos) << "'" << word << "' is not in: " << message;
    }
    return;
  } catch (const std::exception& error) {
    ADD_FAILURE() << "not a UserError: " << error.what();
    return;
  }
  ADD_FAILURE() << "no error; expected one with '" << (words.empty() ? "" : words.front()) << "'";
}

}  // namespace fulmen::testing_support
