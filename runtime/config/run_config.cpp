// SPDX-License-Identifier: Apache-2.0
#include "runtime/config/run_config.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <iterator>
#include <utility>

#include "comm/exchange/exchange.hpp"

namespace cadre {
Field steps_or_auto(std::string name, int64_t& member, std::string help) {
  Allowed allowed;
  allowed.form = "auto, or an integer >= 0";
  const TextMember text = {
      .text = [&member] { return member == kAutoRebalance ? std::string("auto") : fmt::format("{}", member); },
      .set =
          [&member](const std::string& given) {
            int64_t steps = kAutoRebalance;
            const char* const end = given.data() + given.size();
            const auto [stop, error] = std::from_chars(given.data(), end, steps);
            const bool is_number = error == std::errc() && stop == end && steps >= 0;
            if (!is_number && given != "auto") return false;
            member = is_number ? steps : kAutoRebalance;
            return true;
          }};
  return {std::move(name), text, std::move(allowed), std::move(help)};
}

std::vector<Section> sections_of(RunConfig& c) {
  std::vector<Field> model = {{"config", &c.model_config, any(), "a Hugging Face config.json to start from"}};
  std::ranges::move(fields_of(c.model), std::back_inserter(model));
  return {
      {"",
       {
           {"out", &c.out, any(), "folder for checkpoints and logs"},
           {"seed", &c.seed, at_least(0), "seed of weights, data order and sampling"},
           {"recover", &c.recover, one_of({"none", "survivors"}),
            "when ranks die: none ends the job; survivors continues on the others from the last checkpoint (mpirun "
            "--enable-recovery)"},
       }},
      {"model", std::move(model)},
      {"data",
       {
           {"path", &c.data.path, any(),
            "a text file, a folder of them, JSON Lines, or a token file: PREFIX of cadre tokenize or Megatron-LM, or "
            "one of "
            "llm.c"},
           {"mixture", &c.data.mixture, any(),
            "instead of path: data sets with a task for their tokens, TASK:WEIGHT:PATH separated by commas"},
           {"tokenizer", &c.data.tokenizer, any(),
            "bytes, or a tokenizer.json (byte-level BPE), a tokenizer.model (SentencePiece) or a folder with one"},
           {"sequence_length", &c.data.sequence_length, at_least(1), "tokens in a training sequence"},
           {"text_field", &c.data.text_field, any(), "field of an object of json_lines that holds the text"},
           {"format", &c.data.format, one_of({"text", "json_lines", "conversations"}),
            "json_lines: a text file with a JSON object a line, of which data.text_field is a document; conversations: "
            "JSON Lines with messages (role, content, optional weight) or prompt and completion; the "
            "loss "
            "is that of the answers, and sequences are packed from whole conversations"},
           {"chat_format", &c.data.chat_format, one_of({"auto", "deepseek_v2", "deepseek_v3", "deepseek_r1"}),
            "how a conversation becomes a text; auto: as the chat template or the tokens of the tokenizer say"},
           {"validation", &c.data.validation, any(),
            "held-out data of the same format, instead of a share of the training data"},
           {"mask_documents", &c.data.mask_documents, any(),
            "keep attention and positions inside each document of a sequence; an end-of-text token ends a document"},
           {"validation_fraction", &c.data.validation_fraction, from_below(0, 1),
            "share of the data, at its end, that is held out for evaluation"},
       }},
      {"train",
       {
           {"init", &c.train.init, any(),
            "directory of a model, by Hugging Face or Cadre, whose shape, weights and tokenizer a new run starts from"},
           {"steps", &c.train.steps, at_least(1), "optimiser steps"},
           {"batch", &c.train.batch, at_least(1), "sequences in a step, over all ranks"},
           {"micro_batches", &c.train.micro_batches, at_least(1), "number of parts that the batch is split into"},
           {"learning_rate", &c.train.learning_rate, at_least(0), "peak learning rate"},
           {"min_learning_rate", &c.train.min_learning_rate, at_least(0), "learning rate of the last step"},
           {"stages", &c.train.stages, any(),
            "what progressive training trains for how many steps, such as gate:100,experts:200,all; empty: everything"},
           {"schedule", &c.train.schedule, one_of({"cosine", "linear", "constant", "wsd"}),
            "course of the learning rate from peak to minimum; wsd: warm-up, constant, decay"},
           {"warmup_steps", &c.train.warmup_steps, at_least(0), "steps of linear warm-up"},
           {"decay_steps", &c.train.decay_steps, at_least(0), "number of last steps in which wsd decays"},
           {"weight_decay", &c.train.weight_decay, at_least(0), "decoupled weight decay of matrices"},
           {"beta1", &c.train.beta1, from_below(0, 1), "AdamW mean"},
           {"beta2", &c.train.beta2, from_below(0, 1), "AdamW variance"},
           {"epsilon", &c.train.epsilon, more_than(0), "AdamW epsilon"},
           {"recompute", &c.train.recompute, any(),
            "what backward computes again, with the same bits: none | activations (of experts and dense networks) | "
            "mla_up (also queries, keys and values of latent attention) | attention (also all of attention) | layer "
            "(also each layer from its input) | every:N (also each N-th layer)"},
           {"moments", &c.train.moments, one_of({"fp32", "bf16"}),
            "type of AdamW's mean and variance; Muon's momentum stays fp32"},
           {"grad_clip", &c.train.grad_clip, at_least(0), "largest gradient norm; 0 for no clipping"},
           {"max_skipped_steps", &c.train.max_skipped_steps, at_least(1),
            "end the run after this many consecutive steps were skipped because loss or gradient was not finite"},
           {"replay", &c.train.replay, any(),
            "folder of log.routing, or of files that score --routing wrote for the batch of a step: tokens visit the "
            "experts named there; empty: those that routers choose"},
           {"eval_every", &c.train.eval_every, at_least(0), "steps between evaluations; 0: only at the end"},
           {"eval_batches", &c.train.eval_batches, at_least(1),
            "largest number of batches in an evaluation; each held-out window counts once"},
           {"patience", &c.train.patience, at_least(0),
            "end the run after this many evaluations in a row without a lower loss, and keep the checkpoint of the "
            "lowest; 0: neither"},
       }},
      {"adapter",
       {
           {"rank", &c.adapter.rank, at_least(0),
            "train low-rank adapters of this rank (LoRA) and leave the weights of train.init as they are; 0: train "
            "all"},
           {"alpha", &c.adapter.alpha, more_than(0), "adapters are multiplied by alpha / rank"},
           {"dropout", &c.adapter.dropout, from_below(0, 1), "share of the inputs of adapters that is left out"},
           {"targets", &c.adapter.targets, any(),
            "projections with adapters, in attention, dense networks and experts: all, or names such as "
            "q_proj,o_proj,gate_proj,up_proj,down_proj"},
           {"weights", &c.adapter.weights, one_of({"auto", "fp32", "bf16", "fp8"}),
            "format that the weights below adapters are kept in; auto: fp8 where train.init has fp8, else bf16; a note "
            "says if that rounds them"},
           {"init", &c.adapter.init, any(), "directory with adapters, of Cadre or PEFT, to begin with"},
       }},
      {"optim",
       {
           {"name", &c.train.optim.name, one_of({"adamw", "muon"}),
            "muon: matrices move by their orthogonalised momentum, scaled to the size of AdamW's updates; vectors, "
            "embedding and head by AdamW"},
           {"momentum", &c.train.optim.momentum, from_below(0, 1), "Muon's, of Nesterov's kind"},
       }},
      {"parallel",
       {
           {"pipeline", &c.parallel.pipeline, at_least(1), "number of pipeline stages (rows of ranks)"},
           {"stages", &c.parallel.stages, one_of({"even", "balanced"}),
            "layers of a stage: even: as many in each; balanced: as much work in each, with head and MTP modules"},
           {"expert", &c.parallel.expert, at_least(0), "ranks that share one set of experts; 0: all ranks of a row"},
           {"redundant_experts", &c.parallel.redundant_experts, between(0, 1 << 20),
            "additional copies of experts in each such group; copies share the rows"},
           {"placement", &c.parallel.placement, any(),
            "file that assigns experts and copies to ranks, from cadre plan placement --json"},
           steps_or_auto(
               "rebalance", c.parallel.rebalance,
               "move experts where that pays, looking at their loads every N steps; auto: after 4 steps, then "
               "ever less often; 0: never"),
           {"schedule", &c.parallel.schedule, one_of({"1f1b", "zb1p", "dualpipe", "dualpipev", "pair", "auto"}),
            "order of micro-batches; pair (no pipeline): overlaps exchanges of one with products of the next; auto: "
            "measures and "
            "takes the fastest by prediction"},
           {"ramp", &c.parallel.ramp, between(1, 1024),
            "schedule pair: micro-batches side by side where a step begins and ends; each takes memory"},
           {"postponed", &c.parallel.postponed, between(1, 1024),
            "schedules that overlap passes: micro-batches whose weight gradients may wait to fill gaps of later ones; "
            "each takes "
            "memory"},
           {"overlap", &c.parallel.overlap, any(),
            "overlap communication and computation; false: run one operation after the other"},
           {"shard_optimizer", &c.parallel.shard_optimizer, any(),
            "ranks that hold the same parameters share out the state of the optimiser; false: each keeps all of it"},
           {"shard_gradients", &c.parallel.shard_gradients, any(),
            "true: each rank keeps the gradients of its share alone; the sums travel once a micro-batch, not once a "
            "step"},
       }},
      {"exchange",
       {
           {"strategy", &c.exchange.strategy, one_of(strategy_names({"auto"}, {kPluginStrategy})),
            "how rows travel to experts and back; plugin: see model.plugin"},
           {"transport", &c.exchange.transport, one_of({"auto", "mpi", "nccl"}),
            "for device = cuda; auto: nccl if each rank has its own device"},
           {"balance", &c.exchange.balance, one_of({"none", "host"}),
            "host: ranks of a host compute rows of each other's busy experts, each as many, with weights in shared "
            "memory"},
           {"combine", &c.exchange.combine, one_of({"partial", "slot_order"}),
            "partial: ranks return one weighted sum per row; slot_order: one row per expert, equal bits for every "
            "placement"},
           {"dispatch_format", &c.exchange.dispatch_format, one_of({"fp32", "bf16", "fp8"}),
            "format of dispatched rows; fp8: e4m3, one scale per 128 channels"},
           {"combine_format", &c.exchange.combine_format, one_of({"fp32", "bf16"}), "format of returned rows"},
           {"gradients", &c.exchange.gradients, one_of({"fp32", "bf16"}),
            "format in which gradients travel; their sums are fp32"},
           {"progress", &c.exchange.progress, one_of({"poll", "thread"}),
            "thread: an additional thread drives MPI if each rank has a free cpu"},
           {"polls", &c.exchange.polls, between(0, 1e6),
            "polls of MPI inside products while an exchange is in flight; 0: none"},
           {"deadline_s", &c.exchange.deadline_s, between(0.001, 1e6),
            "seconds that a rank waits before it ends the job"},
       }},
      {"compute",
       {
           {"device", &c.compute.device, one_of({"cpu", "cuda"}), "cuda: the ranks of a host use its GPUs in turn"},
           {"precision", &c.compute.precision, one_of({"fp32", "bf16", "fp8"}), "type of products with weights"},
           {"fp8_scale", &c.compute.fp8_scale, one_of({"fp32", "ue8m0"}),
            "type of the scale of an fp8 tile or block; ue8m0: power of two"},
           {"weights", &c.compute.weights, one_of({"fp32", "bf16", "int8", "fp8"}),
            "format that weights are kept in where nothing trains: generate, score, eval; on CPUs"},
           {"row_bits", &c.compute.row_bits, one_of({"fast", "independent"}),
            "independent: the bits of a token do not depend on what is computed beside it, so that train, score and "
            "generate give the same log-probabilities; slower; on CPUs, with exchange.combine = slot_order"},
           {"threads", &c.compute.threads, at_least(1), "threads that compute in a rank"},
           {"products", &c.compute.products, any(),
            "who multiplies on CPUs: auto (measured once for a machine), openblas, onednn, onednn-packed, or what a "
            "run "
            "printed"},
       }},
      {"checkpoint",
       {
           {"every", &c.checkpoint.every, at_least(0), "steps between checkpoints; 0: only at the end"},
           {"keep", &c.checkpoint.keep, at_least(1), "number of newest checkpoints to keep"},
           {"keep_every", &c.checkpoint.keep_every, at_least(0),
            "also keep checkpoints whose step is a multiple of this; 0: none"},
           {"async", &c.checkpoint.async, any(), "copy the state and write it while the next steps run"},
           {"partner_copies", &c.checkpoint.partner_copies, between(0, 1),
            "1: also keep the state in memory, with a copy of each rank's experts on another rank; recover = survivors "
            "continues from it"},
           {"partner_every", &c.checkpoint.partner_every, at_least(1), "steps between these copies"},
           {"resume", &c.checkpoint.resume, any(), "auto (newest in out), never, or the path of a checkpoint"},
       }},
      {"trace",
       {
           {"first_step", &c.trace.first_step, at_least(0), "first step to trace; 0: no trace"},
           {"steps", &c.trace.steps, at_least(1), "number of steps to trace"},
           {"ranks", &c.trace.ranks, any(), "all, or the ranks that write a trace, such as 0,3"},
           {"compare", &c.trace.compare, any(), "also run each traced step without overlap, for comparison"},
       }},
      {"log",
       {
           {"every", &c.log.every, at_least(0),
            "steps between printed lines; 0: the first ten steps, then one every five seconds"},
           {"wide", &c.log.wide, any(), "lines of more than 100 columns, with learning rate and all balance figures"},
           {"progress", &c.log.progress, one_of({"auto", "always", "never"}),
            "bar with the time left; auto: on a terminal of this process or of mpirun; always: also where none is "
            "seen, "
            "as under srun"},
           {"metrics", &c.log.metrics, one_of({"jsonl", "csv"}), "csv: also write metrics.csv, with the same columns"},
           {"tensorboard", &c.log.tensorboard, any(), "also write event files for TensorBoard, to OUT/tensorboard"},
           {"routing", &c.log.routing, any(),
            "folder to write the experts of all tokens to, a file step_NNNNNNNN.safetensors for each step"},
       }},
      {"task",
       {
           {"recognise", &c.task.recognise, any(),
            "give the router the task of each token, recognised in the text up to it; see model.expert_tasks"},
           {"priority", &c.task.priority, any(), "order of the tasks; a text with keywords of several gets the first"},
           {"reasoning", &c.task.reasoning, any(), "keywords of the task, separated by commas; UTF-8"},
           {"coding", &c.task.coding, any(), "keywords of the task"},
           {"math", &c.task.math, any(), "keywords of the task"},
           {"general", &c.task.general, any(), "keywords of the task; also the task of a text without keywords"},
           {"multimodal", &c.task.multimodal, any(), "keywords of the task"},
           {"k_simple", &c.task.k_simple, at_least(1), "experts per token of a simple request"},
           {"k_medium", &c.task.k_medium, at_least(1), "experts per token of a medium request"},
           {"k_complex", &c.task.k_complex, at_least(1), "experts per token of a complex request"},
           {"k_critical", &c.task.k_critical, at_least(1), "experts per token of a critical request"},
           {"k_max", &c.task.k_max, at_least(1), "largest number of experts per token of any request"},
       }},
  };
}

std::string key_prefix(const Section& section) { return section.name.empty() ? "" : section.name + "."; }

}  // namespace cadre
