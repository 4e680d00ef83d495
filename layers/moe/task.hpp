// SPDX-License-Identifier: Apache-2.0
// What a text asks for, found by its words, and which experts are meant for that: the side of task-aware routing that
// reads text. The router adds task_bias to the scores that decide; weights come from the scores themselves, as with every
// selection bias.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cadre {

enum class TaskType : uint8_t { reasoning, coding, math, general, multimodal };

inline constexpr size_t kNumTaskTypes = 5;

std::string_view name_of(TaskType type);  // "REASONING"
// In letters of either case. `where` stands in the message of the error for any other name.
TaskType task_type_named(std::string_view name, std::string_view where);

// The defaults, as lists with commas. Keywords by TaskType.
inline constexpr std::array<std::string_view, kNumTaskTypes> kTaskKeywords = {
    "如果,那么,因此,推理,证明,逻辑,if,then,therefore,because,reason,reasoning,prove,proof,logic,deduce",
    "实现,编写,代码,函数,class,def,code,function,implement,program,debug,compile",
    "求解,计算,方程,=,+,×,数学,solve,calculate,compute,equation,math,mathematics",
    "是什么,怎么样,介绍,描述,what is,what are,how about,introduce,describe",
    "图片,图像,照片,视频,音频,image,picture,photo,video,audio"};
// The most telling first. An image is named in the words of any other task, so MULTIMODAL decides; code is full of the
// signs of MATH; a problem of MATH says "if" and "prove"; the questions of GENERAL are asked about everything.
inline constexpr std::string_view kTaskPriority = "MULTIMODAL,CODING,MATH,REASONING,GENERAL";
inline constexpr std::string_view kExpertTasks = "REASONING,CODING,MATH,GENERAL,CODING,REASONING,GENERAL,MULTIMODAL";
inline constexpr double kTaskBias = 0.2;

struct TaskOptions {
  std::array<std::vector<std::string>, kNumTaskTypes> keywords;  // by TaskType
  std::vector<TaskType> priority;                                // each once
  std::vector<TaskType> expert_tasks;                            // expert e is meant for expert_tasks[e % size]
  double bias = kTaskBias;
};

// The words of a list with commas, without the blanks around them. Empty ones are left out.
std::vector<std::string> words_of(std::string_view list);

struct TaskMatch {
  TaskType type;
  std::string what;  // a keyword, or the name of a pattern: "code fence", "arithmetic", "media file"
  size_t at;         // byte of the text where it stands first

  bool operator==(const TaskMatch&) const = default;
};

struct RecognisedTask {
  TaskType type = TaskType::general;
  std::vector<TaskMatch> matches;  // of all types, in order of priority, then of place in the text
};

// The first type of the priority that has a match; GENERAL when none has. How often something occurs does not count, so
// that two types never tie. Keywords of letters are found as whole words, in either case (ASCII); others, such as Chinese
// words and signs, anywhere. Text is UTF-8: bytes that are not match nothing and do no harm.
RecognisedTask recognise_task(std::string_view text, const TaskOptions& options);

// Global ids of the experts that are meant for the task, ascending.
std::vector<int> experts_of_task(TaskType type, const TaskOptions& options, int num_experts);
// [E]: options.bias for those, 0 for the others.
std::vector<double> task_bias(TaskType type, const TaskOptions& options, int num_experts);

}  // namespace cadre
