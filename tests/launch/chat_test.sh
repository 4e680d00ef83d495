#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Conversations from training to chat: data, evaluation, early stopping, turns, stop strings, refusals.
# Usage: chat_test.sh CADRE [LAUNCHER...]
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

root=$(cd "$(dirname "$0")/../.." && pwd)
data=$folder/chat.jsonl
"$root/launch/make-conversations" 60 >"$data"
[[ "$(wc -l <"$data")" == 60 ]] || fail "make-conversations made another number of lines"
chat=("data=$data" data.format=conversations data.chat_format=deepseek_v2 data.sequence_length=192
  model.max_position_embeddings=256 data.validation_fraction=0.2)

# Too long for some: they are truncated, and the run says how many.
on_two_ranks train "$folder/run.toml" "${chat[@]}" train.eval_every=1 train.patience=5
succeeded "train on conversations"
says "deepseek_v2: 48 conversations, " " of them in answers" "held out: 12 conversations" "% padding" "validation loss 5."
[[ -e "$folder/run/checkpoints/best/cadre.json" ]] || fail "no checkpoint of the best evaluation"
on_two_ranks train "$folder/run.toml" "${chat[@]}" data.sequence_length=64 "out=$folder/short"
succeeded "train on truncated conversations"
says " truncated by " " left out, as no answer is left"

on_two_ranks eval "$folder/run"
succeeded "eval"
says "loss 5." "of which those that count weigh "
grep '^loss' "$output" >"$folder/loss"
alone eval "$folder/run"
diff <(grep '^loss' "$output") "$folder/loss" >&2 || fail "the loss depends on the number of ranks"
alone eval "$folder/run" --format text --data "$data" --batches 1
succeeded "eval on text"
grep '^loss' "$output" | grep -q weigh && fail "a text has tokens that do not count"

# Three ways to ask, on one rank and on two the same answers.
answer() { sed -n '/^note/!p' "$output" | tail -n 1; }
# A random model ends where it likes: what counts is that all ways agree.
ask=(generate "$folder/run" --chat --max-new 20 --temperature 0)
alone "${ask[@]}" --prompt "What is 3 plus 4?" --repetition-penalty 1.3
succeeded "chat with a prompt"
by_prompt=$(answer)
[[ -n "$by_prompt" ]] || fail "no answer"
on_two_ranks "${ask[@]}" --prompt "What is 3 plus 4?" --repetition-penalty 1.3
[[ "$(answer)" == "$by_prompt" ]] || fail "two ranks answer differently"
echo "What is 3 plus 4?" | "$program" "${ask[@]}" --repetition-penalty 1.3 >"$output" 2>"$folder/notes" || fail "chat on standard input"
[[ "$(answer)" == "$by_prompt" ]] || fail "standard input gets another answer"

printf '%s\n' '{"messages": [{"role": "user", "content": "What is 3 plus 4?"}, {"role": "user", "content": "Sure?"}]}' \
  '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}' >"$folder/questions.jsonl"
on_two_ranks "${ask[@]}" --conversations "$folder/questions.jsonl"
succeeded "chat with a file"
[[ "$(grep -c '"messages"' "$output")" == 2 ]] || fail "not a line for each conversation"
[[ "$(grep -o '"role":"assistant"' "$output" | wc -l)" == 3 ]] || fail "not an answer for each question"
says '"content":"Hello"' '"content":"Sure?"'

# A stop string ends a text before it.
alone generate "$folder/run" --prompt "line " --max-new 12 --temperature 0
succeeded "generate"
whole=$(tail -n 1 "$output")
stop=${whole:8:2}
alone generate "$folder/run" --prompt "line " --max-new 12 --temperature 0 --stop "$stop"
succeeded "generate with a stop string"
[[ "$(tail -n 1 "$output")" == "${whole%%"$stop"*}" ]] || fail "the text does not end before '$stop' of '$whole'"

# Turns: a question is read behind those before it and their answers, on standard input as in a file. After some steps answers
# are letters and blanks.
on_two_ranks train "$folder/run.toml" "${chat[@]}" "out=$folder/talk" train.steps=60 train.learning_rate=2e-2 train.batch=8
succeeded "train a model that talks"
talk=(generate "$folder/talk" --chat --max-new 16 --temperature 0.8)
first="What is 3 plus 4?" second="Which number follows 8?"
message() { printf '{"role": "%s", "content": "%s"}' "$1" "$2"; }
answers_in_file() { sed 's/{"role":"assistant",/\n&/g' "$output" | sed -n 's/^{"role":"assistant","content":"\([^"]*\)".*/\1/p'; }
ask_about() {
  printf '{"messages": [%s]}\n' "$1" >"$folder/turns.jsonl"
  on_two_ranks "${talk[@]}" --conversations "$folder/turns.jsonl" "${@:2}"
  succeeded "chat with turns"
}
printf '%s\n%s\n' "$first" "$second" | "$program" "${talk[@]}" >"$folder/typed" 2>"$folder/notes" || fail "turns on standard input"
mapfile -t typed <"$folder/typed"
[[ ${#typed[@]} == 2 && -n "${typed[0]}" && -n "${typed[1]}" ]] || fail "not two answers: $(cat "$folder/typed")"
ask_about "$(message user "$first"), $(message user "$second")"
answers_in_file | diff - "$folder/typed" >&2 || fail "a file gets other answers than standard input"
ask_about "$(message user "$first"), $(message assistant "${typed[0]}"), $(message user "$second")"
[[ "$(answers_in_file | tail -n 1)" == "${typed[1]}" ]] || fail "the answer that is given is not the one before"
ask_about "$(message user "$second")"
[[ "$(answers_in_file)" != "${typed[1]}" ]] || fail "the turns before change nothing"
answer=$(answers_in_file)
((${#answer} > 5)) || fail "the answer is short: $answer"
# What ends an answer: a stop string; any of the end tokens of generation_config.json, which sets other defaults too.
ask_about "$(message user "$second")" --stop "${answer:3:2}"
[[ "$(answers_in_file)" == "${answer%%"${answer:3:2}"*}" ]] || fail "no end before '${answer:3:2}' in '$answer'"
cp -rL "$folder/talk/checkpoints/latest" "$folder/asks"
rm "$folder/asks/cadre.json"  # has the checksum of the file that is replaced
third=$(printf '%d' "'${answer:3:1}")
for ends in 0 "[0, $third]" "[$third, 1]"; do
  echo "{\"eos_token_id\": $ends, \"do_sample\": true, \"temperature\": 0.8}" >"$folder/asks/generation_config.json"
  on_two_ranks generate "$folder/asks" --chat --max-new 16 --prompt "$second"
  succeeded "chat with the end tokens $ends"
  says "note: generation_config.json of the checkpoint sets --temperature 0.8"
  wanted=$answer
  [[ "$ends" == 0 ]] || wanted=${answer%%"${answer:3:1}"*}
  [[ "$(tail -n 1 "$output")" == "$wanted" ]] || fail "with the end tokens $ends not '$wanted'"
done

alone "${ask[@]}" --samples 2 --prompt a
refused 2 "--samples with --chat"
alone generate "$folder/run" --system a --prompt a
refused 2 "--system without --chat"
alone "${ask[@]}" --chat-format auto --prompt a
refused 2 "no chat template" "deepseek_v2 | deepseek_v3 | deepseek_r1" "--chat-format"
alone train "$folder/run.toml" "${chat[@]}" data.chat_format=auto "out=$folder/x"
refused 2 "no chat template" "data.chat_format"
# Nothing to learn from: sequences end before answers begin, answers have no weight.
alone train "$folder/run.toml" "${chat[@]}" data.sequence_length=16 "out=$folder/x"
refused 2 "$data: no token has a loss" "behind data.sequence_length = 16 tokens: raise it"
sed 's/"role": "assistant"/"weight": 0, &/g' "$data" >"$folder/weightless.jsonl"
alone train "$folder/run.toml" "${chat[@]}" "data=$folder/weightless.jsonl" "out=$folder/x"
refused 2 "weightless.jsonl: no token has a loss" "all answers have the weight 0"
# A merged model keeps the chat format that its adapters were trained with; the base, trained on text, has none.
alone train "$folder/run.toml" model.max_position_embeddings=256 "out=$folder/base" train.steps=1
succeeded "train on text"
alone train "$folder/run.toml" "${chat[@]}" "train.init=$folder/base" adapter.rank=2 "out=$folder/adapters" train.steps=1
succeeded "train adapters on conversations"
says "note: $folder/base/checkpoints/step_00000001: this run has model.eos_token_id = 0, there -1"
alone export "$folder/adapters" --out "$folder/merged"
succeeded "export"
grep -q '"eos_token_id": 0' "$folder/merged/config.json" || fail "the merged model has lost the token that ends answers"
grep -q '"eos_token_id": 0' "$folder/merged/generation_config.json" || fail "transformers does not know that token"
alone generate "$folder/adapters" --chat --prompt Hi --max-new 2
succeeded "chat with adapters"
alone generate "$folder/merged" --chat --prompt Hi --max-new 2
succeeded "chat with a merged model"
alone eval "$folder/merged"
succeeded "eval of a merged model"
says "of which those that count weigh "

alone train "$folder/run.toml" "data=$folder/text" data.format=conversations data.chat_format=deepseek_v2 model.eos_token_id=0 "out=$folder/x"
refused 2 "$folder/text: line 1: not a JSON object"
alone train "$folder/run.toml" train.patience=2 "out=$folder/x"
refused 2 "train.patience = 2 with train.eval_every = 0"
alone train "$folder/run.toml" data.mask_documents=true "out=$folder/x"
refused 2 "data.mask_documents = true with model.eos_token_id = -1"
