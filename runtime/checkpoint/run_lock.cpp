// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/run_lock.hpp"

#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <sstream>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/base/host_name.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;
using LockClock = std::chrono::steady_clock;

constexpr const char* kFile = "RUNNING";
constexpr std::chrono::minutes kLongDead{10};  // by the clock of this host, which may differ from that of the holder
constexpr std::chrono::milliseconds kLockPoll{200};

std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string link_text(const char* path) {
  std::error_code none;
  return fs::read_symlink(path, none).string();
}

std::string variable(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? "" : text;
}

// Field `number`, from 1, of /proc/PID/stat; those from 3 on stand behind the name of the program, which may hold blanks.
std::string stat_field(int64_t pid, int number) {
  const std::string line = first_line(fmt::format("/proc/{}/stat", pid).c_str());
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return "";
  std::istringstream rest(line.substr(name_end + 1));
  std::string word;
  for (int field = 3; field <= number; ++field) rest >> word;
  return word;
}

int64_t number_in(const std::string& text) { return text.empty() ? 0 : std::strtoll(text.c_str(), nullptr, 10); }

// Valid UTF-8 for JSON, whatever a host or a job is called.
std::string printable(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) > 0x7e) c = '?';
  }
  return text;
}

nlohmann::json to_json(const LockHolder& holder) {
  return {{"pid", holder.pid},   {"parent", holder.parent},       {"start_time", holder.start_time},
          {"boot", holder.boot}, {"pid_space", holder.pid_space}, {"host", holder.host},
          {"job", holder.job},   {"series", holder.series},       {"run", holder.run},
          {"beat", holder.beat}};
}

// None for a file that is empty, or that its writer did not finish.
std::optional<LockHolder> holder_in(const std::string& text) {
  const auto stored = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!stored.is_object()) return std::nullopt;
  LockHolder holder;
  try {
    holder = {stored.at("pid").get<int64_t>(),           stored.at("parent").get<int64_t>(),
              stored.at("start_time").get<int64_t>(),    stored.at("boot").get<std::string>(),
              stored.at("pid_space").get<std::string>(), stored.at("host").get<std::string>(),
              stored.at("job").get<std::string>(),       stored.at("series").get<std::string>(),
              stored.at("run").get<std::string>(),       stored.at("beat").get<int64_t>()};
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
  return holder;
}

// Opened anew, which makes NFS ask its server.
std::optional<LockHolder> read_holder(const fs::path& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return std::nullopt;
  std::array<char, 8192> text{};
  const ssize_t size = ::read(file, text.data(), text.size());
  ::close(file);
  return size <= 0 ? std::nullopt : holder_in(std::string(text.data(), static_cast<size_t>(size)));
}

void write_holder(int file, const LockHolder& holder, const fs::path& path) {
  std::string text = to_json(holder).dump();
  text.resize(std::max<size_t>(text.size() + 1, 1024),
              ' ');  // one length, so that a heartbeat never leaves half of another
  text.back() = '\n';
  if (::pwrite(file, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()) &&
      ::ftruncate(file, static_cast<off_t>(text.size())) == 0) {
    return;
  }
  // Disks fill up: the lock itself holds, and the next heartbeat tries again.
  if (errno == ENOSPC || errno == EDQUOT) return;
  throw Error(ErrorKind::environment, fmt::format("cannot write {}: {}", path.string(), std::strerror(errno)),
              "check that you may write to the folder of the run");
}

// Whether a process of this machine and pid space still is the holder.
bool is_alive(const LockHolder& holder) {
  const std::string state = stat_field(holder.pid, 3);
  return !state.empty() && state != "Z" && state != "X" && number_in(stat_field(holder.pid, 22)) == holder.start_time;
}

// A process whose launcher is gone, or that was sent SIGKILL or SIGTERM, ends soon.
bool is_ending(const LockHolder& holder, const LockHolder& me) {
  if (holder.boot != me.boot || holder.pid_space != me.pid_space) return false;
  if (!is_alive(holder)) return true;
  if (number_in(stat_field(holder.pid, 4)) != holder.parent) return true;
  std::ifstream status(fmt::format("/proc/{}/status", holder.pid));
  for (std::string word; status >> word;) {
    if (word != "SigPnd:" && word != "ShdPnd:") continue;
    std::string mask;
    status >> mask;
    constexpr uint64_t kKill = uint64_t{1} << (9 - 1);
    if ((std::strtoull(mask.c_str(), nullptr, 16) & kKill) != 0) return true;
  }
  return false;
}

// Modified so long ago that no clock is that wrong.
bool is_long_dead(const fs::path& path) {
  std::error_code none;
  const auto written = fs::last_write_time(path, none);
  const auto age = fs::file_time_type::clock::now() - written;
  return !none && age > kLongDead;
}

Error in_use(const fs::path& folder, const std::optional<LockHolder>& holder) {
  const std::string who = holder ? holder->describe() : "another process";
  return {ErrorKind::input, fmt::format("out = {}: another run trains in this folder: {}", folder.string(), who),
          "wait for it or stop it, or choose another folder with out=PATH"};
}

enum class Flock { taken, held, unknown };  // unknown: the file system has none

struct OpenLock {
  int file = -1;
  Flock state = Flock::unknown;
};

// Opens the file and locks it unless another process holds the lock.
OpenLock open_lock(const fs::path& path) {
  for (;;) {
    OpenLock lock;
    lock.file = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
    struct stat opened {};
    if (lock.file < 0 || ::fstat(lock.file, &opened) != 0 || !S_ISREG(opened.st_mode)) {
      const int error = lock.file < 0 ? errno : EINVAL;
      if (lock.file >= 0) ::close(lock.file);
      throw Error(ErrorKind::environment, fmt::format("cannot open {}: {}", path.string(), std::strerror(error)),
                  "it must be a regular file that you may write to; remove it if no run trains there");
    }
    if (::flock(lock.file, LOCK_EX | LOCK_NB) == 0) {
      lock.state = Flock::taken;
    } else if (errno == EWOULDBLOCK) {
      lock.state = Flock::held;
    }
    // Its last holder may have removed it in between.
    struct stat named {};
    if (::stat(path.c_str(), &named) == 0 && named.st_ino == opened.st_ino && named.st_dev == opened.st_dev)
      return lock;
    ::close(lock.file);
  }
}

// Waits for the lock, or finds out that its holder is gone.
class Taking {
 public:
  Taking(const fs::path& path, const LockHolder& me, const RunLock::Say& say, const RunLockTimes& times)
      : path_(path), me_(me), say_(say), times_(times) {}

  // The locked file.
  int take() {
    for (;;) {
      const OpenLock lock = open_lock(path_);
      const std::optional<LockHolder> holder = read_holder(path_);
      try {
        if (is_free(lock.state, holder)) {
          write_holder(lock.file, me_, path_);
          if (lock.state == Flock::taken || has_stayed_ours()) return lock.file;
        }
      } catch (...) {
        ::close(lock.file);
        throw;
      }
      ::close(lock.file);
      std::this_thread::sleep_for(kLockPoll);
    }
  }

 private:
  // False: to be tried again. Throws when another run has it.
  bool is_free(Flock state, const std::optional<LockHolder>& holder) {
    if (holder && holder->run == me_.run) return true;
    if (state == Flock::held) return wait_for_end(holder);
    if (!holder) return true;
    // A launcher starts the next job of a series when the one before has ended: a free lock suffices on any host.
    if (state == Flock::taken && (holder->boot == me_.boot || follows(*holder))) return true;
    if (holder->boot == me_.boot && holder->pid_space == me_.pid_space) {
      return !is_alive(*holder) || wait_for_end(holder);
    }
    return is_long_dead(path_) || is_silent(*holder);
  }

  bool wait_for_end(const std::optional<LockHolder>& holder) {
    const bool ends = !holder || is_ending(*holder, me_);
    const LockClock::time_point now = LockClock::now();
    if (!since_) since_ = now;
    const auto patience = holder && follows(*holder) ? times_.predecessor
                          : ends                     ? times_.ending
                                                     : std::chrono::milliseconds(0);
    if (now - *since_ >= patience) throw in_use(path_.parent_path(), holder);
    if (holder) tell(fmt::format("note: waiting for {} to end, which has trained in this folder", holder->describe()));
    return false;
  }

  bool follows(const LockHolder& holder) const { return !me_.series.empty() && holder.series == me_.series; }

  // No heartbeat for a while.
  bool is_silent(const LockHolder& holder) {
    tell(fmt::format("note: {} was left by {}; watching its heartbeat for {:.0f} s", path_.string(), holder.describe(),
                     std::chrono::duration<double>(times_.watch).count()));
    const auto end = LockClock::now() + times_.watch;
    while (LockClock::now() < end) {
      std::this_thread::sleep_for(kLockPoll);
      const std::optional<LockHolder> now = read_holder(path_);
      if (now && (now->run != holder.run || now->beat != holder.beat)) return wait_for_end(now);
    }
    return true;
  }

  // Without locks two runs may start together: the one that wrote last stays.
  bool has_stayed_ours() const {
    std::this_thread::sleep_for(times_.beat / 2);
    const std::optional<LockHolder> now = read_holder(path_);
    if (now && now->run == me_.run) return true;
    throw in_use(path_.parent_path(), now);
  }

  void tell(const std::string& line) {
    if (!told_) say_(line);
    told_ = true;
  }

  const fs::path& path_;
  const LockHolder& me_;
  const RunLock::Say& say_;
  const RunLockTimes& times_;
  std::optional<LockClock::time_point> since_;
  bool told_ = false;
};

}  // namespace

std::string LockHolder::describe() const { return fmt::format("pid {} on {} ({})", pid, host, job); }

LockHolder this_process(const std::string& run) {
  LockHolder me;
  me.pid = ::getpid();
  me.parent = ::getppid();
  me.start_time = number_in(stat_field(me.pid, 22));
  me.boot = first_line("/proc/sys/kernel/random/boot_id");
  me.pid_space = link_text("/proc/self/ns/pid");
  me.host = printable(host_name());
  me.job = "no batch job";
  for (const auto& [name, system] : {std::pair("SLURM_JOB_ID", "Slurm job"), std::pair("PBS_JOBID", "PBS job"),
                                     std::pair("LSB_JOBID", "LSF job"), std::pair("JOB_ID", "batch job")}) {
    if (variable(name).empty()) continue;
    me.job = printable(fmt::format("{} {}", system, variable(name)));
    me.series = me.job;
    break;
  }
  if (!variable("CADRE_SERIES").empty()) me.series = printable(variable("CADRE_SERIES"));
  me.run = run;
  return me;
}

RunLock::RunLock(const fs::path& folder, const std::string& run, const Say& say, const RunLockTimes& times)
    : path_(folder / kFile), me_(this_process(run)) {
  std::error_code error;
  fs::create_directories(folder, error);
  CADRE_CHECK(!error, fmt::format("out = {} cannot be created: {}", folder.string(), error.message()),
              "name a folder that can be written with out=PATH");
  descriptor_ = Taking(path_, me_, say, times).take();
  heart_ = std::thread([this, period = times.beat] { beat_until_stopped(period); });
}

RunLock::~RunLock() {
  {
    const std::lock_guard lock(mutex_);
    stops_ = true;
  }
  stopped_.notify_all();
  heart_.join();
  if (is_ours()) ::unlink(path_.c_str());
  ::close(descriptor_);
}

bool RunLock::is_ours() const {
  const std::optional<LockHolder> holder = read_holder(path_);
  return holder && holder->run == me_.run && holder->pid == me_.pid;
}

// A run that stood still for long, on a file system without locks, may have lost the folder: then it must not write any
// more. An exception that leaves a thread ends the job (main.cpp).
void RunLock::beat_until_stopped(std::chrono::milliseconds period) {
  std::unique_lock lock(mutex_);
  while (!stopped_.wait_for(lock, period, [this] { return stops_; })) {
    const std::optional<LockHolder> holder = read_holder(path_);
    if (holder && holder->run != me_.run) {
      throw Error(ErrorKind::environment,
                  fmt::format("{}: another run took this folder over: {}", path_.string(), holder->describe()),
                  "this one stood still for too long; what it saved before stands");
    }
    if (!holder) continue;  // being written, or removed by hand
    ++me_.beat;
    write_holder(descriptor_, me_, path_);
  }
}

}  // namespace cadre
