// SPDX-License-Identifier: Apache-2.0
// How Cadre reports errors. CADRE_CHECK guards input, CADRE_CHECK_PEER what other ranks send, CADRE_ASSERT what only a bug
// of Cadre can break. All are checked in every build: an index that is wrong must end the run, not write to memory.
// Nothing in the libraries aborts: they throw Error, and `main` decides.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <exception>
#include <limits>
#include <source_location>
#include <string>
#include <type_traits>
#include <vector>

namespace cadre {

// What went wrong, and so which exit code `main` gives (launch/README.md lists them).
enum class ErrorKind {
  input,        // a configuration, command line or file that cannot be used
  environment,  // the machine, the launcher or a library refused
  timeout,      // a wait passed its deadline
  numerics,     // NaN or Inf where a number is needed
  lost_rank,    // another rank died
  peer,         // what arrived from another rank is not what the protocol says: the run may be started again
  restart,      // what is left of the job cannot go on: it is to be started again
  internal,     // a mistake of ours
};

// What and where in one line, and a hint that says what to do. Control characters in either are shown as \xNN.
class Error : public std::exception {
 public:
  Error(ErrorKind kind, const std::string& text, const std::string& hint = {},
        std::source_location where = std::source_location::current());

  const char* what() const noexcept override { return full_.c_str(); }
  ErrorKind kind() const { return kind_; }
  const std::string& text() const { return text_; }
  const std::string& hint() const { return hint_; }

 private:
  ErrorKind kind_;
  std::string text_;
  std::string hint_;
  std::string full_;
};

// Exit code of the process for an error of this kind.
int exit_code(ErrorKind kind);

// Narrows to the `int` that MPI counts are. Throws when `value` does not fit; `what` names the count.
template <class Integer>
int checked_int(Integer value, const char* what, std::source_location where = std::source_location::current()) {
  static_assert(std::is_integral_v<Integer>);
  const auto wide = static_cast<int64_t>(value);
  if (wide < 0 || wide > std::numeric_limits<int>::max()) {
    throw Error(ErrorKind::input, fmt::format("{} = {} does not fit the int that MPI counts are", what, value),
                "use more ranks, fewer tokens a micro-batch or a smaller buffer", where);
  }
  return static_cast<int>(wide);
}

// Several errors of input as one: all that is wrong with a configuration, not only the first.
//
//   ErrorList errors;
//   errors.collect([&] { CADRE_CHECK(width > 0, "width = 0, allowed: integer >= 1"); });
//   errors.collect([&] { read_shape(file); });
//   errors.raise();

// Stands between two errors in the text of one; `main` prints each on a line of its own.
inline constexpr const char* kNextError = "; also: ";

class ErrorList {
 public:
  // Runs `part`, whose errors of kind input are kept; others pass through.
  template <class Part>
  void collect(Part&& part) {
    try {
      part();
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::input) throw;
      errors_.push_back(error);
    }
  }

  bool empty() const { return errors_.empty(); }

  // Throws the only error, or one whose text has all with their hints; nothing when there is none.
  void raise() const;

 private:
  std::vector<Error> errors_;
};

// The functions that the calling thread is in, innermost first, one a line. Slow: symbols are looked up.
std::string stack_trace();

// Keeps the stack of the calling thread for the error with this text; a later one takes its place. Quick.
void note_stack(const std::string& text);
// What was kept for it, as stack_trace(); empty if nothing was.
std::string noted_stack(const std::string& text);

}  // namespace cadre

// CADRE_CHECK(condition, text [, hint]); text and hint are evaluated only on failure.
#define CADRE_CHECK(condition, ...)                                 \
  do {                                                              \
    if (!(condition)) [[unlikely]]                                  \
      throw ::cadre::Error(::cadre::ErrorKind::input, __VA_ARGS__); \
  } while (false)

// The same for sizes, counts and indices that another rank sent.
#define CADRE_CHECK_PEER(condition, ...)                           \
  do {                                                             \
    if (!(condition)) [[unlikely]]                                 \
      throw ::cadre::Error(::cadre::ErrorKind::peer, __VA_ARGS__); \
  } while (false)

#define CADRE_ASSERT(condition)                                                            \
  do {                                                                                     \
    if (!(condition)) [[unlikely]]                                                         \
      throw ::cadre::Error(::cadre::ErrorKind::internal, "assertion failed: " #condition); \
  } while (false)
