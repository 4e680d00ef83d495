// SPDX-License-Identifier: Apache-2.0
// The task of a text in Chinese and English, and the worked example of task-aware routing: selection with the bias,
// weights without it, by the pieces that the router is made of.
#include "layers/router/task.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>

#include "layers/kernels/kernels.hpp"
#include "layers/router/eligibility.hpp"
#include "layers/router/weights.hpp"
#include "runtime/config/parsed_keys.hpp"
#include "runtime/data/dataset.hpp"
#include "runtime/tokenizer/bytes.hpp"
#include "runtime/tokenizer/tokenizer.hpp"
#include "tests/support/files.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::task_test {
namespace {

using testing::ElementsAre;

TaskType task_of(std::string_view text, const TaskConfig& config = {}) {
  return recognise_task(text, task_options(config)).type;
}

TEST(Task, OfTexts) {
  const std::pair<const char*, TaskType> cases[] = {
      {"如果下雨，那么地湿。因此？", TaskType::reasoning},
      {"请证明这个定理", TaskType::reasoning},
      {"用Java实现快速排序", TaskType::coding},
      {"编写一个函数", TaskType::coding},
      {"求解方程", TaskType::math},
      {"1 + 1", TaskType::math},
      {"3×4", TaskType::math},
      {"黑洞是什么", TaskType::general},
      {"介绍一下北京", TaskType::general},
      {"描述这张图片", TaskType::multimodal},  // 描述 is a word of GENERAL
      {"If it rains, then what?", TaskType::reasoning},
      {"Implement quicksort", TaskType::coding},
      {"def f(x): return x + 1", TaskType::coding},  // + is a sign of MATH
      {"class A: pass", TaskType::coding},
      {"Solve the equation", TaskType::math},
      {"If x = 2, what is x?", TaskType::math},  // if is a word of REASONING, "what is" of GENERAL
      {"what is 12 / 4", TaskType::math},
      {"Describe Paris", TaskType::general},
      {"What do you see in cat.png?", TaskType::multimodal},
      {"```\nx\n```", TaskType::coding},
      {"hello", TaskType::general},
      {"", TaskType::general}};
  for (const auto& [text, type] : cases) EXPECT_EQ(name_of(task_of(text)), name_of(type)) << text;
}

TEST(Task, WordsOfLettersAreWhole) {
  EXPECT_EQ(task_of("a classic of its kind"), TaskType::general);    // class
  EXPECT_EQ(task_of("the thenar muscle lifts"), TaskType::general);  // then, if
  EXPECT_EQ(task_of("用def定义"), TaskType::coding);                 // a Chinese character ends a word
  EXPECT_EQ(task_of("DEF x"), TaskType::coding);
  EXPECT_EQ(task_of("state-of-the-art 2nd - best"), TaskType::general);
}

// Bytes that are not UTF-8 match nothing, whatever stands around them, and a keyword is no part of another character.
TEST(Task, TakesAnyBytes) {
  EXPECT_EQ(task_of("\xff\xfe 求解 \x80"), TaskType::math);
  EXPECT_EQ(task_of(std::string("\xe6\xb1", 2)), TaskType::general);  // the first two bytes of 求
  EXPECT_EQ(task_of(std::string("a\0 def", 6)), TaskType::coding);
}

TEST(Task, SaysWhatMatched) {
  const RecognisedTask task = recognise_task("描述这张图片: 1+2", task_options({}));
  EXPECT_EQ(task.type, TaskType::multimodal);
  EXPECT_THAT(task.matches, ElementsAre(TaskMatch{TaskType::multimodal, "图片", 12}, TaskMatch{TaskType::math, "+", 21},
                                        TaskMatch{TaskType::general, "描述", 0}));
}

TEST(Task, IsEditedInTheConfiguration) {
  TaskConfig config;
  config.priority = "general, coding,math,reasoning,multimodal";
  config.coding = "Fortran , über";
  EXPECT_EQ(task_of("描述这张图片", config), TaskType::general);
  EXPECT_EQ(task_of("fortran", config), TaskType::coding);
  EXPECT_EQ(task_of("über", config), TaskType::coding);
  EXPECT_EQ(task_of("implement", config), TaskType::general);
}

TEST(Task, RefusesConfigurations) {
  const auto refusal = [](auto&& edit) {
    TaskConfig config;
    edit(config);
    return test::message_of([&] { task_options(config); });
  };
  test::expect_message(refusal([](TaskConfig& c) { c.priority = "MATH,COOKING"; }),
                       {"task.priority", "COOKING", "MATH"});
  test::expect_message(refusal([](TaskConfig& c) { c.priority = "MATH,CODING"; }), {"task.priority", "each task once"});
}

// The reader of a growing text against the definition, byte by byte: all that was read so far, recognised anew.
TEST(Task, OfAGrowingTextIsThatOfWhatWasReadSoFar) {
  const char* texts[] = {"define if iffy, then def",
                         "用Java实现 12   /    4 iff class",
                         "state-of-the-art 2nd - 3 cat.pngs dog.png",
                         " .png a.jpg what is  what is it```",
                         "What is 1-x, 1 - 2; \xff\xe6\xb1 求解",
                         "prove that reasoning reason"};
  for (const std::string text : texts) {
    TaskReader reader(task_options({}));
    for (size_t end = 1; end <= text.size(); ++end) {
      const RecognisedTask whole = recognise_task(text.substr(0, end), task_options({}));
      const std::optional<TaskType> task = reader.read(text.substr(end - 1, 1));
      ASSERT_EQ(task.has_value(), !whole.matches.empty()) << text.substr(0, end);
      if (task) {
        ASSERT_EQ(name_of(*task), name_of(whole.type)) << text.substr(0, end);
      }
    }
    reader.restart();
    EXPECT_EQ(reader.read("hello"), std::nullopt);
  }
}

TaskLabeller bytes_labeller(int64_t end_of_text = -1) {
  return {task_options({}), std::make_shared<ByteTokenizer>(), end_of_text};
}

TEST(Task, LabelsATokenByWhatStandsUpToIt) {
  const std::vector<int32_t> ids = encode_bytes(
      "ok,solve"
      "hi there"
      "def f():");
  const std::vector<int32_t> labels = bytes_labeller().label(ids, 8);
  constexpr auto kMath = static_cast<int32_t>(TaskType::math);
  constexpr auto kCoding = static_cast<int32_t>(TaskType::coding);
  EXPECT_EQ(labels, (std::vector<int32_t>{kNoTask, kNoTask, kNoTask, kNoTask, kNoTask, kNoTask, kNoTask, kMath,  //
                                          kNoTask, kNoTask, kNoTask, kNoTask, kNoTask, kNoTask, kNoTask, kNoTask,
                                          kNoTask, kNoTask, kCoding, kCoding, kCoding, kCoding, kCoding, kCoding}));
  EXPECT_TRUE(bytes_labeller().label({}, 8).empty());
  // A later token changes no label.
  std::vector<int32_t> changed = ids;
  changed[7] = 'x';
  std::vector<int32_t> expected = labels;
  expected[7] = kNoTask;
  EXPECT_EQ(bytes_labeller().label(changed, 8), expected);
}

TEST(Task, BeginsAnewBehindTheEndOfAText) {
  const std::vector<int32_t> ids = {'=', 'x', 256, 'x', 'y', '=', 256, 'z'};
  constexpr auto kMath = static_cast<int32_t>(TaskType::math);
  EXPECT_EQ(bytes_labeller(256).label(ids, 8),
            (std::vector<int32_t>{kMath, kMath, kMath, kNoTask, kNoTask, kMath, kMath, kNoTask}));
  EXPECT_EQ(bytes_labeller().label(ids, 8), std::vector<int32_t>(8, kMath));
}

// Tokens are pieces of text, whatever tokenizer made them; a keyword may lie in several.
TEST(Task, IsRecognisedWithAnyTokenizer) {
  const TokenizerFiles files = {{kTokenizerJsonFile,
                                 R"({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
           "model": {"type": "BPE", "vocab": {"d": 0, "e": 1, "f": 2, "\u0120": 3, "de": 4, "x": 5}, "merges": ["d e"]}})"}};
  const TaskLabeller labeller(task_options({}), make_tokenizer(files, "tokenizer"), -1);
  constexpr auto kCoding = static_cast<int32_t>(TaskType::coding);
  const std::vector<int32_t> ids = {4, 2, 5, 3, 4, 2, 3, 5};  // "defx def x"
  EXPECT_EQ(labeller.label(ids, 8),
            (std::vector<int32_t>{kNoTask, kCoding, kNoTask, kNoTask, kNoTask, kCoding, kCoding, kCoding}));
}

TEST(Task, NeedsTheTextOfTokens) {
  const test::TemporaryDirectory folder;
  std::string file(1024, '\0');
  const int32_t header[] = {20240520, 1, 2};
  std::memcpy(file.data(), header, sizeof(header));
  test::write_file(folder / "tokens.bin", file + std::string(4, '\1'));
  RunConfig config;
  config.data.path = (folder / "tokens.bin").string();
  EXPECT_FALSE(make_task_labeller(config).has_value());
  config.task.recognise = true;
  test::expect_message(test::message_of([&] { make_task_labeller(config); }), {"task.recognise", "tokens.bin"});
}

// 12.5 %, 25 %, 37.5 % and 50 % of eight experts.
TEST(Complexity, SaysHowManyExperts) {
  const ComplexityTable table = complexity_table({});
  EXPECT_EQ(experts_for(Complexity::simple, table, 8), 1);
  EXPECT_EQ(experts_for(Complexity::medium, table, 8), 2);
  EXPECT_EQ(experts_for(Complexity::complex, table, 8), 3);
  EXPECT_EQ(experts_for(Complexity::critical, table, 8), 4);
  EXPECT_EQ(experts_for(Complexity::critical, table, 2), 2);  // the model has no more
  TaskConfig config;
  config.k_max = 3;
  config.k_simple = 2;
  EXPECT_EQ(experts_for(complexity_named("critical"), complexity_table(config), 8), 3);
  EXPECT_EQ(experts_for(complexity_named("simple"), complexity_table(config), 8), 2);
  test::expect_message(test::message_of([] { complexity_named("hard"); }), {"hard", "simple | medium"});
}

TEST(Complexity, IsGuessedFromTheWords) {
  const auto level = [](const std::string& text) {
    return static_cast<int>(recognise_complexity(text, task_options({})));
  };
  EXPECT_EQ(level(""), 0);
  EXPECT_EQ(level("What is a black hole?"), 0);  // GENERAL
  EXPECT_EQ(level("Solve x"), 1);
  EXPECT_EQ(level("Solve x, calculate y"), 1);  // one task
  EXPECT_EQ(level("Prove it, then solve x"), 2);
  EXPECT_EQ(level("Prove it, then solve x and implement it"), 2);
  EXPECT_EQ(level(std::string(199, 'x')), 0);
  EXPECT_EQ(level(std::string(200, 'x')), 1);
  EXPECT_EQ(level("证明并求解"), 2);
  std::string long_text = "证明并求解";
  for (int i = 0; i < 194; ++i) long_text += "字";
  EXPECT_EQ(level(long_text), 2);  // 199 characters
  EXPECT_EQ(level(long_text + "字"), 3);
}

}  // namespace
}  // namespace cadre::task_test
