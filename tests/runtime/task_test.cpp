// SPDX-License-Identifier: Apache-2.0
// The task of a text in Chinese and English, and the worked example of task-aware routing: selection with the bias,
// weights without it, by the pieces that the router is made of.
#include "layers/moe/task.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "layers/kernels/kernels.hpp"
#include "layers/moe/complexity.hpp"
#include "layers/moe/weights.hpp"
#include "runtime/config/task_config.hpp"
#include "runtime/data/task_labels.hpp"
#include "runtime/tokenizer/bytes.hpp"
#include "tests/support/messages.hpp"
#include "tests/support/tensors.hpp"

namespace cadre {
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

TEST(Task, LabelsEachTokenOfASequence) {
  const std::vector<int32_t> ids = encode_bytes(
      "solve x!"
      "hi there"
      "def f():");
  const std::vector<int32_t> labels = task_labels(ids, 8, task_options({}));
  ASSERT_EQ(labels.size(), 24U);
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(labels[i], static_cast<int32_t>(TaskType::math));
    EXPECT_EQ(labels[8 + i], kNoTask);
    EXPECT_EQ(labels[16 + i], static_cast<int32_t>(TaskType::coding));
  }
  EXPECT_TRUE(task_labels({}, 8, task_options({})).empty());
}

// 12.5 %, 25 %, 37.5 % and 50 % of eight experts.
TEST(Complexity, SaysHowManyExperts) {
  const ComplexityTable table = complexity_table({});
  EXPECT_EQ(experts_for(Complexity::simple, table, 8), 1);
  EXPECT_EQ(experts_for(Complexity::medium, table, 8), 2);
  EXPECT_EQ(experts_for(Complexity::complex, table, 8), 3);
  EXPECT_EQ(experts_for(Complexity::critical, table, 8), 4);
  EXPECT_EQ(experts_for(Complexity::critical, table, 2), 2);
  TaskConfig config;
  config.k_max = 3;
  config.k_simple = 2;
  EXPECT_EQ(experts_for(complexity_named("critical"), complexity_table(config), 8), 3);
  EXPECT_EQ(experts_for(complexity_named("simple"), complexity_table(config), 8), 2);
  test::expect_message(test::message_of([] { complexity_named("hard"); }), {"hard", "simple | medium"});
}

}  // namespace
}  // namespace cadre
