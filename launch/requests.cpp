// SPDX-License-Identifier: Apache-2.0
#include "launch/requests.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <fstream>

#include "comm/base/check.hpp"
#include "launch/checkpoint_argument.hpp"
#include "layers/model/router_options.hpp"
#include "runtime/config/parsed_keys.hpp"

namespace cadre {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
constexpr size_t kMostBytes = size_t{256} << 20;

std::string read_lines(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text;
  std::array<char, size_t{1} << 16> part;
  while (file && text.size() <= kMostBytes) {
    file.read(part.data(), part.size());
    text.append(part.data(), static_cast<size_t>(file.gcount()));
  }
  CADRE_CHECK(file.eof() && !file.bad(), fmt::format("--prompts {}: cannot be read", path),
              "expected a text file with one prompt per line");
  CADRE_CHECK(text.find('\0') == std::string::npos,
              fmt::format("--prompts {}: contains a zero byte, so it is not UTF-8 text", path),
              "expected a text file with one prompt per line; convert UTF-16 to UTF-8");
  return text;
}

// Appends the prompts of a file.
void add_lines(const std::string& path, Requests& requests) {
  const std::string text = read_lines(path);
  std::string_view rest = text;
  if (rest.starts_with(kByteOrderMark)) rest.remove_prefix(kByteOrderMark.size());
  int64_t num_empty = 0;
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) ++num_empty;
    if (!line.empty()) requests.prompts.emplace_back(line);
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  if (num_empty > 0) requests.notes.push_back(fmt::format("{}: {} empty lines are skipped", path, num_empty));
}

// Whether a token may visit more experts than the model was trained with: where selection by token is all that decides.
bool takes_more_experts(const ModelConfig& model) {
  const SelectOptions& select = model.router.select;
  const bool by_token = select.rule == SelectRule::token_choice || select.rule == SelectRule::sinkhorn;
  return by_token && select.task_top_k.empty() && model.expert_kinds != ExpertKinds::projections;
}

// Experts that may be chosen for a token.
int64_t eligible_experts(const ModelConfig& model) {
  const bool by_group = model.topk_method != TopkMethod::greedy && model.n_group > 1;
  return by_group ? model.n_routed_experts / model.n_group * model.topk_group : model.n_routed_experts;
}

int64_t experts_of(const std::string& prompt, const std::string& name, const RunConfig& config) {
  const Complexity complexity =
      name == "auto" ? recognise_complexity(prompt, task_options(config.task)) : complexity_named(name);
  const ModelConfig& model = config.model;
  const int64_t most = takes_more_experts(model) ? eligible_experts(model) : model.num_experts_per_tok;
  return experts_for(complexity, complexity_table(config.task), most);
}

// By prompt; 0 without a complexity.
std::vector<int64_t> experts_by_prompt(const std::string& complexity, const std::vector<std::string>& prompts,
                                       const RunConfig& config) {
  std::vector<int64_t> experts(prompts.size(), 0);
  const std::vector<std::string> names = words_of(complexity);
  if (names.empty()) return experts;
  constexpr const char* kAllowed = "simple | medium | complex | critical | auto, separated by commas";
  for (const std::string& name : names) {
    CADRE_CHECK(name == "auto" || is_complexity(name),
                fmt::format("--complexity {}, allowed: {}", complexity, kAllowed),
                "give one for all prompts, or one for each");
  }
  CADRE_CHECK(names.size() == 1 || names.size() == prompts.size(),
              fmt::format("--complexity {} names {} for {} prompts, allowed: one, or one for each", complexity,
                          names.size(), prompts.size()),
              kAllowed);
  for (size_t i = 0; i < prompts.size(); ++i) {
    experts[i] = experts_of(prompts[i], names[names.size() == 1 ? 0 : i], config);
  }
  return experts;
}

}  // namespace

ModelConfig with_top_k(ModelConfig model, int64_t top_k) {
  if (top_k <= model.num_experts_per_tok) return model;
  // Weights of one expert are not normalised; those of more than one would be.
  if (model.num_experts_per_tok == 1) model.norm_topk_prob = false;
  model.num_experts_per_tok = top_k;
  check(model);
  return model;
}

Requests make_requests(const RequestOptions& options, const RunConfig& config, const Tokenizer& tokenizer) {
  Requests requests;
  requests.prompts = options.prompts;
  if (!options.prompts_file.empty()) add_lines(options.prompts_file, requests);
  CADRE_CHECK(!requests.prompts.empty(), "no prompt, allowed: at least one",
              "use --prompt TEXT (repeatable) or --prompts FILE");
  const std::vector<int64_t> experts = experts_by_prompt(options.complexity, requests.prompts, config);
  const int64_t usual = config.model.num_experts_per_tok;
  requests.top_k = std::max(usual, std::ranges::max(experts));
  for (size_t i = 0; i < requests.prompts.size(); ++i) {
    std::vector<int32_t> tokens = tokenizer.prompt_prefix();
    const std::vector<int32_t> own = tokenizer.encode(requests.prompts[i]);
    tokens.insert(tokens.end(), own.begin(), own.end());
    RequestFacts facts = {.task = task_of(options.task), .num_experts = experts[i]};
    if (facts.num_experts == 0 && requests.top_k > usual) facts.num_experts = usual;
    for (int64_t sample = 0; sample < options.samples; ++sample) {
      Sampling sampling = options.sampling;
      sampling.seed += static_cast<uint64_t>(sample);
      requests.texts.push_back({tokens, sampling, facts});
    }
  }
  return requests;
}

std::string explain(const std::string& prompt, const RunConfig& config, const RequestFacts& facts) {
  RecognisedTask task = recognise_task(prompt, task_options(config.task));
  const bool is_given = facts.task != kNoTask;
  if (is_given) task = {static_cast<TaskType>(facts.task), {}};
  std::string text = fmt::format("task     {}\n", name_of(task.type));
  for (const TaskMatch& match : task.matches) {
    text += fmt::format("keyword  {} of {}, at byte {}\n", match.what, name_of(match.type), match.at);
  }
  if (!is_given && task.matches.empty()) text += fmt::format("keyword  none: {}\n", name_of(task.type));
  std::vector<size_t> meant;
  const std::vector<int32_t>& tasks = config.model.router.bias.expert_task;
  for (size_t expert = 0; expert < tasks.size(); ++expert) {
    if (tasks[expert] == static_cast<int32_t>(task.type)) meant.push_back(expert);
  }
  const bool is_told = is_given || (config.task.recognise && !task.matches.empty());
  text +=
      fmt::format("experts  {} of {} belong to the task{}\n",
                  meant.empty() ? "none" : fmt::format("{}", fmt::join(meant, " ")), config.model.n_routed_experts,
                  is_told ? fmt::format(", bias {}", config.model.router.bias.task) : ", but the router gets no task");
  if (facts.num_experts > 0) text += fmt::format("top-k    at most {} experts a token\n", facts.num_experts);
  return text;
}

}  // namespace cadre
