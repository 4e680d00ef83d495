// SPDX-License-Identifier: Apache-2.0
// Run files and overrides: what they set, what they refuse and in which words, and that a saved one reads back equal.
#include "runtime/config/run_config.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "layers/model/family.hpp"
#include "runtime/config/config_changes.hpp"
#include "runtime/config/key_synonyms.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/config/step_changes.hpp"
#include "tests/support/messages.hpp"

namespace cadre::run_config_test {
namespace {

using test::expect_message;
using test::message_of;

constexpr const char* kRun = R"(out = "runs/a"

[model]
hidden_size = 64
num_hidden_layers = 2
num_attention_heads = 4
intermediate_size = 128
n_routed_experts = 10
num_experts_per_tok = 2
moe_intermediate_size = 32

[data]
path = "text"
sequence_length = 32

[train]
steps = 50
batch = 8
)";

RunConfig parse(const std::string& toml, const std::vector<std::string>& overrides = {}) {
  return parse_run_config(toml, "run.toml", overrides);
}

TEST(RunConfig, FileThenOverrides) {
  const RunConfig config = parse(kRun, {"train.steps=7", "seed=9", "data=books/a b", "model.norm_topk_prob=true",
                                        "train.learning_rate=1", "model.rms_norm_eps=1e-5", "out=12"});
  EXPECT_EQ(config.train.steps, 7);
  EXPECT_EQ(config.train.batch, 8);
  EXPECT_EQ(config.seed, 9);
  EXPECT_EQ(config.data.path, "books/a b");
  EXPECT_TRUE(config.model.norm_topk_prob);
  EXPECT_EQ(config.train.learning_rate, 1.0);
  EXPECT_EQ(config.model.rms_norm_eps, 1e-5);
  EXPECT_EQ(config.out, "12");
  EXPECT_EQ(config.model.hidden_size, 64);
  EXPECT_EQ(config.model.num_key_value_heads, 4);
  EXPECT_EQ(config.train.beta2, TrainConfig{}.beta2);
  EXPECT_NO_THROW(check(config, 4));  // 10 experts on 4 ranks
}

TEST(RunConfig, TheLastOfTwoOverridesWins) { EXPECT_EQ(parse(kRun, {"steps=7", "train.steps=8"}).train.steps, 8); }

TEST(RunConfig, EveryFieldSurvivesTheSavedFile) {
  RunConfig config = parse(kRun);
  // Moves every field away from its default, so that a field the writer or the reader forgot shows.
  const RunConfig before = config;
  for (Section& section : sections_of(config)) {
    for (Field& field : section.fields) {
      if (field.name == "config") continue;
      if (auto* flag = std::get_if<bool*>(&field.member)) **flag = !**flag;
      if (auto* integer = std::get_if<int64_t*>(&field.member)) {
        **integer = std::min(**integer + 3, static_cast<int64_t>(std::min(field.allowed.max, 1e9)));
      }
      if (auto* integer = std::get_if<int*>(&field.member)) **integer += 3;
      if (auto* real = std::get_if<double*>(&field.member)) **real = **real * 0.3 + 1e-9;
      if (auto* text = std::get_if<TextMember>(&field.member)) {
        const bool is_list = field.allowed.choices.empty();
        ASSERT_TRUE(text->set(!is_list                            ? field.allowed.choices.back()
                              : field.name == "expert_conditions" ? "1:task=2"
                                                                  : "1"));
      }
      if (auto* text = std::get_if<std::string*>(&field.member)) {
        **text = field.allowed.choices.empty() ? "a \"quoted\"\\ pa'th\n\tü" : field.allowed.choices.back();
      }
    }
  }
  ASSERT_NE(config, before);
  EXPECT_EQ(parse(to_toml(config)), config) << to_toml(config);
}

TEST(RunConfig, RebalanceIsANumberOfStepsOrAuto) {
  EXPECT_EQ(parse("[parallel]\nrebalance = 12\n").parallel.rebalance, 12);
  EXPECT_EQ(parse("[parallel]\nrebalance = \"auto\"\n").parallel.rebalance, kAutoRebalance);
  EXPECT_EQ(parse(kRun, {"parallel.rebalance=7"}).parallel.rebalance, 7);
  for (const char* wrong : {"-1", "often", "1.5", ""}) {
    expect_message(message_of([&] { parse(kRun, {std::string("parallel.rebalance=") + wrong}); }),
                   {"parallel.rebalance = ", "allowed: auto, or an integer >= 0"});
  }
  RunConfig config = parse(kRun, {"parallel.rebalance=auto"});
  EXPECT_NO_THROW(check(config, 4));
  config.model.expert_kinds = ExpertKinds::typed;
  expect_message(message_of([&] { check(config, 4); }), {"parallel.rebalance, allowed: 0"});
}

// In a file and on the command line: one line, which names the place, the key and what is allowed.
TEST(RunConfig, AnUnknownNameOfAnyKeyIsRefused) {
  RunConfig known;
  int num_keys = 0;
  for (const Section& section : sections_of(known)) {
    for (const Field& field : section.fields) {
      if (field.allowed.choices.empty()) continue;
      ++num_keys;
      const std::string key = key_prefix(section) + field.name;
      const std::string refused = fmt::format("{} = \"oracle\", allowed: {}", key, allowed_text(field));
      const std::string message = message_of([&] { parse(fmt::format("\n{} = \"oracle\"\n", key)); });
      expect_message(message, {("run.toml:2: " + refused).c_str()});
      expect_message(message_of([&] { parse(kRun, {key + "=oracle"}); }), {refused.c_str()});
    }
  }
  EXPECT_GE(num_keys, 25);
}

TEST(RunConfig, HelpNamesEveryKey) {
  const std::string help = run_config_help();
  RunConfig config;
  size_t num_fields = 0;
  for (const Section& section : sections_of(config)) {
    for (const Field& field : section.fields) {
      ++num_fields;
      EXPECT_NE(help.find("  " + field.name + " = "), std::string::npos) << field.name;
      EXPECT_FALSE(field.help.empty()) << field.name;
    }
  }
  EXPECT_GT(num_fields, 50U);
  expect_message(help,
                 {"[train]", "silu | gelu | relu", "number in [0, 1)", "  steps                         train.steps"});
  std::istringstream lines(help);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 100U) << line;
}

TEST(RunConfig, RefusesFiles) {
  struct Case {
    const char* toml;
    std::initializer_list<const char*> parts;
  };
  const Case cases[] = {
      {"[train]\n\nstpes = 5", {"run.toml:3: unknown key train.stpes", "train.steps"}},
      {"steps = 5", {"run.toml:1: unknown key steps", "train.steps"}},
      {"[trian]\nsteps = 5", {"run.toml:1: unknown section [trian]", "nearest known name is train"}},
      {"[trian]", {"unknown section [trian]"}},
      {"train = 5", {"run.toml:1: unknown key train"}},
      {"[model]\nn_routed_expert = 8", {"run.toml:2: unknown key model.n_routed_expert", "model.n_routed_experts"}},
      {"[train]\nsteps = 0", {"run.toml:2: train.steps = 0", "allowed: integer >= 1"}},
      {"[train]\nsteps = \"many\"", {"run.toml:2: train.steps = \"many\"", "integer >= 1"}},
      {"[train]\nsteps = 1.5", {"train.steps = 1.5", "integer >= 1"}},
      {"[train]\nsteps = [1, 2]", {"run.toml:2: train.steps is of type array", "integer >= 1"}},
      {"[train.steps]\na = 1", {"run.toml:1: train.steps is of type table"}},
      {"[train]\nbeta1 = 1", {"train.beta1 = 1", "number in [0, 1)"}},
      {"[train]\nlearning_rate = nan", {"train.learning_rate = nan", "number >= 0"}},
      {"[train]\nlearning_rate = inf", {"train.learning_rate = inf"}},
      {"[train]\nschedule = \"step\"", {"train.schedule = \"step\"", "cosine | linear | constant | wsd"}},
      {"[model]\nnorm_topk_prob = 1", {"model.norm_topk_prob = 1", "true | false"}},
      {"[model]\nmodel_type = \"llama\"", {"model.model_type = \"llama\"", "allowed: deepseek"}},
      {"[train]\nsteps = ", {"run.toml:2: "}},
      {"[train]\nsteps = 1\nsteps = 2", {"run.toml:3: "}},
  };
  for (const Case& c : cases) expect_message(message_of([&] { parse(c.toml); }), c.parts);
}

TEST(RunConfig, RefusesOverrides) {
  const auto refused = [](const char* argument) { return message_of([&] { parse(kRun, {argument}); }); };
  expect_message(refused("train.stps=5"), {"command line: unknown key train.stps", "train.steps"});
  expect_message(refused("steps"), {"command line: steps is not key=value"});
  expect_message(refused("=5"), {"=5 is not key=value"});
  expect_message(refused("steps=5x"), {"command line: train.steps = 5x", "integer >= 1"});
  expect_message(refused("steps="), {"command line: train.steps = ", "integer >= 1"});
  expect_message(refused("steps=-1"), {"train.steps = -1"});
  expect_message(refused("steps=99999999999999999999"), {"train.steps = 99999999999999999999"});
  expect_message(refused("model.norm_topk_prob=yes"), {"model.norm_topk_prob = yes", "true | false"});
  expect_message(refused("compute.precision=fp4"), {"compute.precision = \"fp4\"", "fp32 | bf16 | fp8"});
}

TEST(RunConfig, ChecksCombinations) {
  const auto refused = [](std::vector<std::string> overrides, int num_ranks) {
    return message_of([&] { check(parse(kRun, overrides), num_ranks); });
  };
  EXPECT_EQ(refused({}, 3), "no error");
  EXPECT_EQ(refused({"parallel.expert=2"}, 4), "no error");
  expect_message(refused({"parallel.expert=3"}, 4), {"parallel.expert = 3", "divisor of the 4 ranks"});
  expect_message(refused({"train.micro_batches=9"}, 1), {"train.micro_batches = 9", "[1, train.batch = 8]"});
  expect_message(refused({"data.sequence_length=4096"}, 1),
                 {"data.sequence_length = 4096", "model.max_position_embeddings = 2048"});
  expect_message(refused({"train.min_learning_rate=0.5"}, 1), {"train.min_learning_rate = 0.5", "= 0.001]"});
  expect_message(refused({"train.warmup_steps=51"}, 1), {"train.warmup_steps = 51", "[0, 50]"});
  expect_message(refused({"train.warmup_steps=30", "train.schedule=wsd", "train.decay_steps=21"}, 1),
                 {"train.warmup_steps = 30", "[0, 29]"});
  expect_message(refused({"train.schedule=wsd", "train.decay_steps=51"}, 1),
                 {"train.decay_steps = 51", "[1, train.steps = 50]"});
  expect_message(refused({"train.eval_every=5", "data.validation_fraction=0"}, 1), {"train.eval_every = 5"});
  expect_message(refused({"data="}, 1), {"data.path = \"\""});
  expect_message(refused({"out="}, 1), {"out = \"\""});
  expect_message(refused({"checkpoint.resume="}, 1), {"checkpoint.resume = \"\""});
  expect_message(refused({"model.num_experts_per_tok=11"}, 1),
                 {"model.num_experts_per_tok = 11", "n_routed_experts = 10"});
}

TEST(RunConfig, NamesAllErrorsAtOnce) {
  expect_message(message_of([] { parse("[train]\nstpes = 5\nbatch = 0\n[modle]\n", {"seed=-1"}); }),
                 {"run.toml:2: unknown key train.stpes", "run.toml:3: train.batch = 0", "unknown section [modle]",
                  "command line: seed = -1"});
  expect_message(message_of([] {
                   check(parse(kRun, {"train.micro_batches=9", "data=", "parallel.pipeline=3"}), 4);
                 }),
                 {"train.micro_batches = 9", "data.path = \"\"", "parallel.pipeline = 3"});
}

TEST(RunConfig, KnowsTheNamesOfOtherPrograms) {
  const auto refusal = [](const char* word) { return message_of([&] { parse(kRun, {word}); }); };
  expect_message(refusal("lr=1"), {"unknown key lr", "train.learning_rate"});
  expect_message(refusal("model.n_experts=8"), {"unknown key model.n_experts", "model.n_routed_experts"});
  expect_message(refusal("train.banana=1"), {"unknown key train.banana", "lists all keys"});
  EXPECT_EQ(refusal("train.banana=1").find("nearest"), std::string::npos);
  EXPECT_EQ(key_of_option("--steps"), "train.steps");
  EXPECT_EQ(key_of_option("--lr"), "train.learning_rate");
  EXPECT_EQ(key_of_option("--batch-size"), "train.batch");
  EXPECT_EQ(key_of_option("--hidden-size"), "model.hidden_size");
  EXPECT_EQ(key_of_option("--banana"), "");
  // Each synonym leads to a key that is there.
  RunConfig config;
  std::vector<std::string> keys;
  for (const Section& section : sections_of(config)) {
    for (const Field& field : section.fields) keys.push_back(key_prefix(section) + field.name);
  }
  for (const std::string& key : synonym_keys()) EXPECT_NE(std::ranges::find(keys, key), keys.end()) << key;
}

TEST(RunConfig, ShortensALongWarmup) {
  RunConfig config = parse(kRun, {"train.warmup_steps=51"});
  expect_message(shorten_warmup(config), {"train.warmup_steps = 51", "50 steps", "shortened to 5"});
  EXPECT_EQ(config.train.warmup_steps, 5);
  EXPECT_EQ(shorten_warmup(config), "");
  config = parse(kRun, {"train.warmup_steps=50"});
  EXPECT_EQ(shorten_warmup(config), "");
  config = parse(kRun, {"train.warmup_steps=30", "train.schedule=wsd", "train.decay_steps=21"});
  EXPECT_NE(shorten_warmup(config), "");
  EXPECT_EQ(config.train.warmup_steps, 3);
  EXPECT_NO_THROW(check(config, 1));
}

TEST(RunConfig, ValuesChangeInTheCourseOfARun) {
  const std::string text = std::string(kRun) +
                           "\n[from_step.10]\nmodel.mtp_loss_factor = 0.1\ntrain.batch = 64\n"
                           "[from_step.5]\ntrain.batch = 48\nmodel.rope_scaling.type = \"yarn\"\n";
  RunConfig config = parse(text, {"steps=20", "from_step.10.train.batch=56", "from_step.7.data.sequence_length=16"});
  EXPECT_EQ(first_steps(config), (std::vector<int64_t>{1, 5, 7, 10}));
  const auto batch_at = [&](int64_t step) { return config_at(config, step).train.batch; };
  EXPECT_EQ(batch_at(4), config.train.batch);
  EXPECT_EQ(batch_at(5), 48);
  EXPECT_EQ(batch_at(9), 48);
  EXPECT_EQ(batch_at(10), 56);
  EXPECT_EQ(config_at(config, 4).model.rope_scaling.type, "none");
  EXPECT_EQ(config_at(config, 20).model.rope_scaling.type, "yarn");
  EXPECT_EQ(config_at(config, 6).data.sequence_length, config.data.sequence_length);
  EXPECT_EQ(config_at(config, 7).data.sequence_length, 16);
  EXPECT_EQ(config_at(config, 10).model.mtp_loss_factor, 0.1);
  EXPECT_EQ(last_step_like(config, 1), 4);
  EXPECT_EQ(last_step_like(config, 7), 9);
  EXPECT_EQ(last_step_like(config, 12), 20);
  EXPECT_EQ(parse(to_toml(config)), config);
  // Traced steps have one configuration.
  config.trace.first_step = 6;
  EXPECT_EQ(config_at(config, 5).trace.steps, 1);
  EXPECT_EQ(config_at(config, 8).trace.first_step, 0);
  EXPECT_NO_THROW(check(config, 1));
  config.train.steps = 9;
  expect_message(message_of([&] { check(config, 1); }), {"from_step.10, allowed: integer in [1, train.steps = 9]"});
  const auto refusal = [&](const std::string& more) { return message_of([&] { parse(std::string(kRun) + more); }); };
  expect_message(refusal("\n[from_step.0]\ntrain.batch = 1\n"), {"from_step.0, allowed: integer >= 1"});
  expect_message(refusal("\n[from_step.x]\ntrain.batch = 1\n"), {"from_step.x"});
  expect_message(refusal("\n[from_step.3]\ntrain.steps = 1\n"), {"train.steps cannot change"});
  expect_message(refusal("\n[from_step.3]\ntrain.btach = 1\n"), {"unknown key train.btach"});
  expect_message(refusal("\n[from_step.3]\ntrain.batch = 0\n"), {"batch = 0"});
  expect_message(message_of([] { parse(kRun, {"out=\xff"}); }), {"is not UTF-8"});
}

TEST(RunConfig, NamesWhatChanged) {
  const RunConfig before = parse(kRun);
  const RunConfig now = parse(kRun, {"seed=99", "model.aux_loss_alpha=0.5", "out=elsewhere", "log.every=7",
                                     "train.steps=77", "from_step.3.train.batch=8"});
  std::vector<std::string> texts;
  for (const KeyChange& change : changed_keys(before, now)) texts.push_back(change.text());
  EXPECT_EQ(texts,
            (std::vector<std::string>{fmt::format("seed = 99, was {}", before.seed),
                                      fmt::format("model.aux_loss_alpha = 0.5, was {}", before.model.aux_loss_alpha),
                                      fmt::format("train.steps = 77, was {}", before.train.steps),
                                      "from_step.3.train.batch = 8, was not given"}));
  EXPECT_TRUE(decides_result("train.batch"));
  EXPECT_FALSE(decides_result("train.steps"));
  EXPECT_FALSE(decides_result("parallel.expert"));
}

TEST(RunConfig, ModelConfigFileLiesBelowTheOtherKeys) {
  const auto folder = std::filesystem::path(::testing::TempDir()) / "cadre_run_config_test";
  std::filesystem::create_directories(folder);
  const std::string model_path = (folder / "config.json").string();
  ModelConfig model = parse(kRun).model;
  model.rope_theta = 5e5;
  model.hidden_act = "gelu";
  std::ofstream(model_path) << to_json(model).dump();

  const std::string toml = "[model]\nhidden_size = 128\nconfig = \"" + model_path + "\"\n";
  const RunConfig config = parse(toml, {"model.hidden_act=relu"});
  EXPECT_EQ(config.model.rope_theta, 5e5);
  EXPECT_EQ(config.model.hidden_size, 128);
  EXPECT_EQ(config.model.hidden_act, "relu");
  EXPECT_EQ(config.model_config, "");
  EXPECT_EQ(parse("", {"model.config=" + model_path}).model, model);

  expect_message(message_of([] { parse("", {"model.config=absent.json"}); }), {"absent.json: cannot read"});
  std::ofstream(model_path) << "{";
  expect_message(message_of([&] { parse(toml); }), {"config.json: not valid JSON"});
  expect_message(message_of([] { load_run_config("absent.toml", {}); }), {"absent.toml: cannot read"});
  expect_message(message_of([&] { load_run_config(folder.string(), {}); }), {"cannot read this file: it is a folder"});
  // Without a writer a FIFO would be waited for, for ever; a device has no end.
  const std::string fifo = folder / "fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  expect_message(message_of([&] { load_run_config(fifo, {}); }), {"fifo: cannot read this file: it is a FIFO"});
  expect_message(message_of([&] { parse("", {"model.config=" + fifo}); }), {"fifo: cannot read", "it is a FIFO"});
  expect_message(message_of([] { load_run_config("/dev/zero", {}); }), {"/dev/zero: cannot read", "it is a device"});
  std::filesystem::remove_all(folder);
}

TEST(RunConfig, ShippedRunFilesAreValid) {
  const auto folder = std::filesystem::path(CADRE_TEST_FOLDER) / "../launch/configs";
  int num_files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".json") {
      const std::string with = "model.config=" + entry.path().string();
      EXPECT_NO_THROW(check(parse("", {with, "data=text"}), 4)) << entry.path();
    }
    if (entry.path().extension() != ".toml") continue;
    ++num_files;
    // A run on adapters takes its model from train.init; a large one names it from the root of the repository.
    const std::string model = "model.config=" + (folder / "v3-671b-shape.json").string();
    const bool is_large = entry.path().filename() == "v3-671b.toml";
    const bool has_model = entry.path().filename() != "tune-lora.toml" && !is_large;
    const std::vector<std::string> words =
        has_model ? std::vector<std::string>{"data=text"} : std::vector<std::string>{"data=text", model};
    EXPECT_NO_THROW(check(load_run_config(entry.path().string(), words), is_large ? 2048 : 4)) << entry.path();
  }
  EXPECT_GE(num_files, 1);
}

// So that other programs open what a newcomer trains first.
TEST(RunConfig, ShippedModelsHaveDeepSeeksName) {
  const auto folder = std::filesystem::path(CADRE_TEST_FOLDER) / "../launch/configs";
  for (const char* file : {"quickstart.toml", "v3-mini.toml"}) {
    RunConfig config = load_run_config((folder / file).string(), {"data=text"});
    EXPECT_EQ(architecture_name(config.model), "DeepseekV3ForCausalLM") << file;
    config.model.shared_expert_mean = true;
    EXPECT_EQ(architecture_name(config.model), "CadreForCausalLM") << file;
  }
}

}  // namespace
}  // namespace cadre::run_config_test
