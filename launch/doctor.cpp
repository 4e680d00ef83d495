// SPDX-License-Identifier: Apache-2.0
// cadre doctor: what this program was built with, what it finds on every host of the job, and for each trouble the line
// that repairs it. What a machine lacks by design is printed and is no trouble.
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/group/topology.hpp"
#include "comm/job/wait.hpp"
#include "comm/progress/progress_thread.hpp"
#include "comm/transport/mpi.hpp"
#include "launch/banner.hpp"
#include "launch/command.hpp"
#include "launch/network.hpp"
#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/cpu/products.hpp"
#include "layers/kernels/gpu/cuda.hpp"
#include "runtime/tokenizer/sentencepiece.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMebibyte = int64_t{1} << 20;
// Open MPI keeps some 4 MiB a rank in /dev/shm; windows for rows of tens of thousands of tokens need more.
constexpr int64_t kShmBytesPerRank = 64 * kMebibyte;
constexpr int64_t kLockedBytes = 64 * kMebibyte;  // for an RDMA adapter to register buffers

struct DoctorArguments {
  int64_t threads = 1;
  int64_t ranks = 0;
  int64_t links = 16;
};

// What a rank finds on its host; travels between ranks as bytes.
struct HostFacts {
  int64_t shm_bytes = 0;  // 0: no /dev/shm
  int64_t shm_free_bytes = 0;
  int64_t lockable_bytes = 0;
  int32_t num_adapters = 0;  // InfiniBand and RoCE
  int32_t num_gpus = 0;
  std::array<char, 28> launcher{};
};

int32_t entries_of(const fs::path& folder) {
  std::error_code error;
  int32_t count = 0;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) ++count;
  return count;
}

// SLURM_PROCID last: inside a batch job mpirun's ranks have it too, all the same one.
const char* launcher_of_process() {
  const auto is_set = [](const char* name) { return std::getenv(name) != nullptr; };
  if (is_set("OMPI_COMM_WORLD_SIZE") && is_set("PMIX_RANK") && !is_set("SLURM_STEP_NUM_TASKS")) return "mpirun";
  if (is_set("OMPI_COMM_WORLD_SIZE")) return "mpirun in a Slurm job";
  if (is_set("SLURM_STEP_NUM_TASKS") && is_set("SLURM_PROCID")) return "srun";
  if (is_set("PMI_SIZE")) return "mpiexec (hydra)";
  return "none";
}

HostFacts find_facts() {
  HostFacts facts;
  struct statvfs shm = {};
  if (statvfs("/dev/shm", &shm) == 0) {
    facts.shm_bytes = static_cast<int64_t>(shm.f_blocks * shm.f_frsize);
    facts.shm_free_bytes = static_cast<int64_t>(shm.f_bavail * shm.f_frsize);
  }
  struct rlimit locked = {};
  if (getrlimit(RLIMIT_MEMLOCK, &locked) == 0) {
    facts.lockable_bytes = static_cast<int64_t>(std::min<rlim_t>(locked.rlim_cur, INT64_MAX));
  }
  facts.num_adapters = entries_of("/sys/class/infiniband");
  facts.num_gpus = entries_of("/proc/driver/nvidia/gpus");
  std::string_view(launcher_of_process()).copy(facts.launcher.data(), facts.launcher.size() - 1);
  return facts;
}

std::vector<HostFacts> gather_facts(const Communicator& world) { return wait(world.all_gather(find_facts())); }

// "^ucx" when a file of parameters or the environment switches UCX off; else what chooses Open MPI's layer, or "".
std::string pml_choice() {
  if (const char* variable = std::getenv("OMPI_MCA_pml")) return variable;
  std::ifstream file("/etc/openmpi/openmpi-mca-params.conf");
  for (std::string line; std::getline(file, line);) {
    std::erase(line, ' ');
    if (line.starts_with("pml=")) return line.substr(4);
  }
  return "";
}

bool ucx_is_off(const std::string& choice) {
  return choice.starts_with('^') ? choice.find("ucx") != std::string::npos
                                 : !choice.empty() && choice.find("ucx") == std::string::npos;
}

bool has_ucx() {
  for (const char* folder : {"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"}) {
    if (fs::exists(fs::path(folder) / "libucp.so.0")) return true;
  }
  return false;
}

// What rank 0 knows of the job.
struct Findings {
  Topology topology;
  std::vector<Binding> bindings;   // [ranks]
  std::vector<HostFacts> facts;    // [ranks]
  std::vector<Adapters> adapters;  // [ranks]
  std::vector<LinkSpeed> links;
  std::string no_spare_cpu;  // why no progress thread runs; else empty
  bool is_mpi = true;        // else ranks are threads
  int64_t threads = 1;
};

class Troubles {
 public:
  void add(const std::string& what, const std::string& repair) {
    text_ += fmt::format("TROUBLE {}\n   repair {}\n", what, repair);
    ++count_;
  }
  void print() const {
    fmt::print("{}{}\n", text_, count_ == 0 ? "no trouble found" : fmt::format("troubles found: {}", count_));
  }

 private:
  std::string text_;
  int count_ = 0;
};

void print_build(const Findings& findings) {
  fmt::print("cadre {}\n", CADRE_VERSION);
  fmt::print("  products  fp32 by OpenBLAS ({}){}; bf16 {}\n", blas_core_name(),
             has_onednn() ? " or oneDNN, by what compute.products chooses" : "",
             multiplies_bf16() ? "by oneDNN" : "rounded, as slow as fp32: oneDNN or the instructions are missing");
  fmt::print("  vectors   {}\n", cpu_vector_target());
  fmt::print("  tokens    bytes, tokenizer.json; tokenizer.model {}\n",
             has_sentencepiece() ? "by SentencePiece" : "not supported: SentencePiece is missing");
  fmt::print("  mpi       {}, thread level {}\n", mpi_library_version(), mpi_thread_level());
  fmt::print("  ucx       {}{}\n", has_ucx() ? "installed" : "not installed",
             has_ucx() && ucx_is_off(pml_choice()) ? ", switched off (pml = " + pml_choice() + ")" : "");
  if (findings.is_mpi) {
    const std::string network = network_text(loaded_components(), findings.adapters);
    if (!network.empty()) fmt::print("  network   {}\n", network);
  }
  const CudaDevices devices = find_cuda_devices();
  fmt::print("  cuda      {}\n", devices.list.empty() ? devices.why_none
                                                      : fmt::format("{} devices, the first {}", devices.list.size(),
                                                                    devices.list.front().name));
  const std::string launcher = findings.facts.front().launcher.data();
  fmt::print("  launcher  {}, ranks {}{}\n", launcher, findings.topology.num_ranks(),
             findings.is_mpi ? "" : " as threads of one process");
}

int first_rank_of(const Topology& topology, int host) {
  return static_cast<int>(std::ranges::find(topology.host_of_rank, host) - topology.host_of_rank.begin());
}

void print_host(const Findings& findings, int host) {
  const Topology& topology = findings.topology;
  const auto first = static_cast<size_t>(first_rank_of(topology, host));
  const HostFacts& facts = findings.facts[first];
  fmt::print("{}", host_line(topology, findings.bindings, host));
  fmt::print("            cores {}, local ranks {}, /dev/shm {} MiB with {} free, RDMA adapters {}, GPUs {}\n",
             findings.bindings[first].num_cores, topology.ranks_on_host(host), facts.shm_bytes / kMebibyte,
             facts.shm_free_bytes / kMebibyte, facts.num_adapters, facts.num_gpus);
}

// Ranks that are bound, and share what they are bound to, on a host with cores to spare.
bool is_bound_together(const Findings& findings, int host) {
  const Topology& topology = findings.topology;
  std::vector<std::string> cpus;
  for (int rank = 0; rank < topology.num_ranks(); ++rank) {
    if (topology.host_of_rank[static_cast<size_t>(rank)] != host) continue;
    cpus.emplace_back(findings.bindings[static_cast<size_t>(rank)].cpus.data());
  }
  std::ranges::sort(cpus);
  const auto is_one_cpu = [](const std::string& list) { return list.find_first_of(",-") == std::string::npos; };
  const auto shared = std::ranges::adjacent_find(cpus);
  return shared != cpus.end() && is_one_cpu(*shared);
}

void look_at_host(const Findings& findings, int host, Troubles& troubles) {
  const auto first = static_cast<size_t>(first_rank_of(findings.topology, host));
  const std::string& name = findings.topology.host_names[static_cast<size_t>(host)];
  const int num_ranks = findings.topology.ranks_on_host(host);
  const HostFacts& facts = findings.facts[first];
  const int num_cores = findings.bindings[first].num_cores;
  if (num_cores > 0 && num_ranks * findings.threads > num_cores) {
    troubles.add(fmt::format("{}: cores {} < ranks {} x threads {}", name, num_cores, num_ranks, findings.threads),
                 "use fewer ranks or a smaller compute.threads; if you cannot, mpirun --mca mpi_yield_when_idle 1");
  } else if (findings.is_mpi && is_bound_together(findings, host)) {
    troubles.add(fmt::format("{}: several ranks are bound to the same cpu", name),
                 "mpirun --map-by slot:PE=THREADS --bind-to core, or srun --cpus-per-task=THREADS");
  }
  if (findings.is_mpi && num_ranks > 1 && facts.shm_free_bytes < num_ranks * kShmBytesPerRank) {
    troubles.add(
        fmt::format("{}: /dev/shm has {} MiB free for {} ranks", name, facts.shm_free_bytes / kMebibyte, num_ranks),
        fmt::format("mount -o remount,size={}M /dev/shm; containers: --shm-size; old segments: rm "
                    "/dev/shm/vader_segment.*",
                    (facts.shm_bytes - facts.shm_free_bytes + num_ranks * kShmBytesPerRank) / kMebibyte));
  }
  if (facts.num_adapters == 0 || findings.topology.num_hosts() == 1) return;
  if (ucx_is_off(pml_choice())) {
    troubles.add(fmt::format("{} has an RDMA adapter, but UCX is disabled", name),
                 "export OMPI_MCA_pml=ucx, as launch/mpirun/ucx.sh does");
  }
  if (facts.lockable_bytes < kLockedBytes) {
    troubles.add(fmt::format("{}: the limit of locked memory is {} MiB, too little for RDMA", name,
                             facts.lockable_bytes / kMebibyte),
                 "ulimit -l unlimited (limits.conf, or LimitMEMLOCK of slurmd)");
  }
}

void look_at_job(const Findings& findings, Troubles& troubles) {
  if (findings.is_mpi && mpi_thread_level() != "multiple") {
    troubles.add(fmt::format("thread level {}: no progress thread", mpi_thread_level()),
                 "use an MPI with thread support, or exchange.progress=poll");
  }
  const char* allocated = std::getenv("SLURM_NTASKS");
  if (allocated != nullptr && std::atoi(allocated) > 1 && findings.topology.num_ranks() == 1) {
    troubles.add(fmt::format("this is one process in a Slurm job of {} tasks", allocated),
                 "srun --mpi=pmix cadre ..., or mpirun cadre ...");
  }
  if (std::getenv("SLURM_CPUS_PER_TASK") != nullptr && std::getenv("SRUN_CPUS_PER_TASK") == nullptr) {
    troubles.add("since Slurm 22.05 srun does not inherit --cpus-per-task from the job",
                 "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK, as launch/slurm/env.sh does");
  }
}

void print_findings(const Findings& findings) {
  print_build(findings);
  Troubles troubles;
  look_at_job(findings, troubles);
  for (int host = 0; host < findings.topology.num_hosts(); ++host) {
    print_host(findings, host);
    look_at_host(findings, host, troubles);
  }
  fmt::print("  progress  {}\n", findings.no_spare_cpu.empty() ? "a thread can drive MPI: every rank has a free cpu"
                                                               : fmt::format("by polls: {}", findings.no_spare_cpu));
  for (const LinkSpeed& link : findings.links) {
    const auto name_of = [&](int rank) {
      const auto host = static_cast<size_t>(findings.topology.host_of_rank[static_cast<size_t>(rank)]);
      return fmt::format("rank {} on {}", rank, findings.topology.host_names[host]);
    };
    fmt::print("  link      {} - {}: latency {:.1f} us, bandwidth {:.2f} GB/s\n", name_of(link.first),
               name_of(link.second), link.latency_us, link.bytes_per_second * 1e-9);
  }
  troubles.print();
}

void run_doctor(const DoctorArguments& options, const Job& job) {
  job.on_ranks(options.ranks, [&](const Communicator& world) {
    Findings findings;
    findings.topology = discover_topology(world);
    findings.bindings = gather_bindings(world);
    findings.facts = gather_facts(world);
    findings.adapters = gather_adapters(world);
    findings.links = measure_links(world, findings.topology, static_cast<int>(options.links));
    findings.no_spare_cpu = find_spare_cpu(world, static_cast<int>(options.threads)).why_not;
    findings.is_mpi = options.ranks == 0;
    findings.threads = options.threads;
    if (world.rank() == 0) print_findings(findings);
  });
}

}  // namespace

Command doctor_command() {
  const auto options = std::make_shared<DoctorArguments>();
  return {.name = "doctor",
          .summary = "prints what was built, what each host of the job has, and how to repair what is wrong",
          .options = {{"threads", &options->threads, at_least(1), "compute.threads of later runs"},
                      {"links", &options->links, between(0, 1024),
                       "other hosts to measure latency and bandwidth to, from rank 0"},
                      ranks_option(options->ranks)},
          .run = [options](const Job& job) { run_doctor(*options, job); }};
}

}  // namespace cadre
