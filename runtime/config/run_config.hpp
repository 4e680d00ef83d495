// SPDX-License-Identifier: Apache-2.0
// Everything a run can be told: nested plain structs with defaults. run_config.cpp holds one table of fields a struct;
// run_file makes the reader, the overrides, the help and the printed configuration from it.
// Paths are relative to the working directory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/base/fields.hpp"
#include "layers/model/config.hpp"
#include "layers/router/task.hpp"

namespace cadre {

struct DataConfig {
  std::string path;
  std::string mixture;              // of data sets by task, in place of path: parsed_keys.hpp
  std::string tokenizer = "bytes";  // or the path of one
  int64_t sequence_length = 128;
  std::string format = "text";       // or json_lines, conversations
  std::string text_field = "text";   // of json_lines
  std::string chat_format = "auto";  // of conversations
  std::string validation;            // held-out data of its own; empty: validation_fraction of the rest
  double validation_fraction = 0.05;
  bool mask_documents = false;

  bool operator==(const DataConfig&) const = default;
};

// Keys of [optim].
struct OptimConfig {
  std::string name = "adamw";
  double momentum = 0.95;  // of muon

  bool operator==(const OptimConfig&) const = default;
};

struct TrainConfig {
  std::string init;  // directory of a model whose weights a new run starts from; empty: random ones
  int64_t steps = 1000;
  int64_t batch = 32;         // sequences of the global batch, over all ranks
  int64_t micro_batches = 1;  // the global batch is cut in that many
  double learning_rate = 1e-3;
  double min_learning_rate = 1e-4;
  std::string stages;  // of progressive training, see step_changes.hpp; empty: all is trained in all steps
  std::string schedule = "cosine";
  int64_t warmup_steps = 0;
  int64_t decay_steps = 0;  // of wsd
  double weight_decay = 0.1;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  std::string moments = "fp32";
  OptimConfig optim;
  std::string recompute = "activations";  // none | activations | mla_up | attention | layer | every:N
  double grad_clip = 1.0;                 // 0: off
  int64_t max_skipped_steps = 10;         // in a row
  std::string replay;                     // folder of log.routing; empty: routers choose
  int64_t eval_every = 0;                 // 0: only at the end
  int64_t eval_batches = 8;
  int64_t patience = 0;  // evaluations; 0: the run does not end early

  bool operator==(const TrainConfig&) const = default;
};

// Low-rank adapters on fixed weights; parsed_keys.hpp reads it.
struct AdapterConfig {
  int64_t rank = 0;  // 0: none
  double alpha = 16.0;
  double dropout = 0.0;
  std::string targets = "all";   // or names of projections
  std::string weights = "auto";  // how the fixed weights are kept
  std::string init;              // directory with adapters to begin with; empty: new ones

  bool operator==(const AdapterConfig&) const = default;
};

inline constexpr int64_t kAutoRebalance = -1;

struct ParallelConfig {
  int64_t pipeline = 1;  // rows of ranks that the layers are cut over
  std::string stages = "even";
  int64_t expert = 0;  // ranks that share one set of experts; 0: all ranks of a row
  int64_t redundant_experts = 0;
  std::string placement;  // a file of cadre plan placement
  int64_t rebalance = 0;  // steps from one look at the loads to the next; 0: experts stay; kAutoRebalance
  std::string schedule = "1f1b";
  int64_t ramp = 2;  // of schedule pair
  int64_t postponed = 1;
  bool overlap = true;
  bool shard_optimizer = true;
  bool shard_gradients = false;

  bool operator==(const ParallelConfig&) const = default;
};

struct ExchangeConfig {
  std::string transport = "auto";  // or mpi, nccl
  std::string strategy = "auto";
  std::string balance = "none";  // or host
  std::string combine = "partial";
  std::string dispatch_format = "fp32";
  std::string combine_format = "fp32";
  std::string gradients = "fp32";
  std::string progress = "poll";
  double polls = 30;  // while an exchange is in flight, between the tiles of products; 0: none
  double deadline_s = 120.0;

  bool operator==(const ExchangeConfig&) const = default;
};

struct ComputeConfig {
  std::string device = "cpu";  // or cuda
  std::string precision = "fp32";
  std::string fp8_scale = "fp32";
  std::string weights = "fp32";   // of generation, score and eval: the format that they are kept in
  std::string row_bits = "fast";  // or independent
  int64_t threads = 1;            // that compute, in each rank
  std::string products = "auto";  // or ProductChoice::text()

  bool operator==(const ComputeConfig&) const = default;
};

struct CheckpointConfig {
  int64_t every = 0;       // steps; 0: only at the end
  int64_t keep = 2;        // newest ones
  int64_t keep_every = 0;  // and those of steps that are multiples of it; 0: none
  bool async = false;
  int64_t partner_copies = 0;   // of each rank's experts, in the memory of another one
  int64_t partner_every = 10;   // steps
  std::string resume = "auto";  // auto, never, or the path of a checkpoint

  bool operator==(const CheckpointConfig&) const = default;
};

struct TraceConfig {
  int64_t first_step = 0;  // 0: no trace
  int64_t steps = 5;
  std::string ranks = "all";  // all, or numbers with commas
  bool compare = true;        // run each traced step without overlap too

  bool operator==(const TraceConfig&) const = default;
};

struct LogConfig {
  int64_t every = 0;  // 0: the first ten steps, then one every five seconds
  bool wide = false;
  std::string progress = "auto";
  std::string metrics = "jsonl";  // csv: metrics.csv beside metrics.jsonl
  bool tensorboard = false;
  std::string routing = {};  // folder for the experts that tokens visited; empty: none

  bool operator==(const LogConfig&) const = default;
};

// Lists are separated by commas; parsed_keys.hpp reads them. Keywords and experts are those of layers/moe/task.
struct TaskConfig {
  bool recognise = false;
  std::string priority{kTaskPriority};
  std::string reasoning{kTaskKeywords[0]};
  std::string coding{kTaskKeywords[1]};
  std::string math{kTaskKeywords[2]};
  std::string general{kTaskKeywords[3]};
  std::string multimodal{kTaskKeywords[4]};
  int64_t k_simple = 1;
  int64_t k_medium = 2;
  int64_t k_complex = 3;
  int64_t k_critical = 4;
  int64_t k_max = 4;

  bool operator==(const TaskConfig&) const = default;
};

// [from_step.N] key = value: what a key of another section is from step N on.
struct StepChange {
  int64_t step = 1;
  std::string key;
  FieldValue value;

  bool operator==(const StepChange&) const = default;
};

struct RunConfig {
  std::string out = "runs/default";
  int64_t seed = 1234;
  std::string recover = "none";  // what the ranks that are left do when others die

  std::string model_config;       // [model] config; empty once its keys have been read
  std::string model_config_read;  // the file that it named, for messages
  ModelConfig model;
  DataConfig data;
  TrainConfig train;
  AdapterConfig adapter;
  ParallelConfig parallel;
  ExchangeConfig exchange;
  ComputeConfig compute;
  CheckpointConfig checkpoint;
  TraceConfig trace;
  LogConfig log;
  TaskConfig task;
  std::vector<StepChange> changes;  // by step ascending, then key; step_changes.hpp reads them

  bool operator==(const RunConfig&) const = default;
};

// The tables, bound to the members of `config`: one per section, the top level first with an empty name.
struct Section {
  std::string name;
  std::vector<Field> fields;
};
std::vector<Section> sections_of(RunConfig& config);

// A number of steps or passes, or "auto": kAutoRebalance.
Field steps_or_auto(std::string name, int64_t& member, std::string help);

// What stands before the name of a field: "train.", or nothing at the top level.
std::string key_prefix(const Section& section);

// Cuts a warm-up that is longer than the run to a tenth of it, rounded up, and says so in a note; empty: nothing to cut.
std::string shorten_warmup(RunConfig& config);

// Throws when values or combinations cannot run on this many ranks; the error names all of them.
void check(const RunConfig& config, int num_ranks);

}  // namespace cadre
