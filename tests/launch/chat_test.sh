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
