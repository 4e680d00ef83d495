// SPDX-License-Identifier: Apache-2.0
// What a text asks for, found by its words: the side of task-aware routing that reads text. The router is told a number a
// token (TokenFacts::task) and prefers the experts that model.expert_tasks gives that number.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
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
// Of eight experts, and how much they are preferred: what model.expert_tasks and model.task_bias usually say.
inline constexpr std::string_view kExpertTasks = "0,1,2,3,1,0,3,4";
inline constexpr double kTaskBias = 0.2;

struct TaskOptions {
  std::array<std::vector<std::string>, kNumTaskTypes> keywords;  // by TaskType
  std::vector<TaskType> priority;                                // each once
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

// The task of a text that grows: what recognise_task says of all that was read so far, in time that does not grow with it.
class TaskReader {
 public:
  explicit TaskReader(TaskOptions options);

  // None while nothing in the text tells a task.
  std::optional<TaskType> read(std::string_view piece);
  void restart();  // with an empty text

 private:
  bool matches(TaskType type, size_t known);

  TaskOptions options_;
  size_t margin_;                                 // a match that begins further back was settled before
  std::string text_;                              // lowered
  std::array<bool, kNumTaskTypes> settled_ = {};  // a match that no further byte takes back
};

}  // namespace cadre
