// XXH3 through the xxHash library.
#include "framework/hash.h"

#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <vector>

#include <fmt/format.h>
#include <xxhash.h>

#include "framework/error.h"
#include "framework/outside_files.h"

namespace fulmen {

struct Hasher::State {
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state{XXH3_createState(), XXH3_freeState};
};

Hasher::Hasher() : state_(std::make_unique<State>()) {
  FULMEN_CHECK(state_->state && XXH3_64bits_reset(state_->state.get()) == XXH_OK, "no hash state");
}
Hasher::~Hasher() = default;
Hasher::Hasher(Hasher&&) noexcept = default;
Hasher& Hasher::operator=(Hasher&&) noexcept = default;

void Hasher::update(const void* data, std::size_t bytes) {
  if (bytes == 0) return;
  FULMEN_CHECK(XXH3_64bits_update(state_->state.get(), data, bytes) == XXH_OK, "hashing failed");
}

std::string Hasher::digest() const { return fmt::format("{:016x}", XXH3_64bits_digest(state_->state.get())); }

std::uint64_t hash_bytes(const void* data, std::size_t bytes) { return XXH3_64bits(data, bytes); }

std::string hash_file(const std::filesystem::path& path) {
  const Descriptor file = open_regular_file(path);
  Hasher hasher;
  std::vector<char> piece(std::size_t{1} << 20);
  for (;;) {
    const ssize_t got = ::read(file.get(), piece.data(), piece.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      throw UserError(path.string(), "cannot be read: " + std::generic_category().message(errno), "check the disk");
    }
    if (got == 0) return hasher.digest();
    hasher.update(piece.data(), static_cast<std::size_t>(got));
  }
}

}  // namespace fulmen
