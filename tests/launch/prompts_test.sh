#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Prompts as users have them, experts by prompt, a vocabulary that is padded, names that are not UTF-8. Usage:
# prompts_test.sh CADRE [LAUNCHER...]
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

run=$folder/run.toml
on_two_ranks train "$run" model.vocab_size=320 model.eos_token_id=300 model.initializer_range=0.2
succeeded "train with a vocabulary larger than the tokenizer's"
on_two_ranks eval "$folder/run" --batches 2
succeeded "eval with a padded vocabulary"

# The same two prompts, whatever the line ends, a byte order mark or empty lines.
printf 'line \nof a number\n' >"$folder/lf"
printf 'line \r\nof a number\r\n' >"$folder/crlf"
printf '\xef\xbb\xbfline \nof a number' >"$folder/bom"
printf 'line \n\n\r\nof a number\n\n' >"$folder/blank"
texts() { on_two_ranks generate "$folder/run" --prompts "$folder/$1" --max-new 6 --seed 3 "${@:2}"; }
texts lf
succeeded "generate with a padded vocabulary"
cp "$output" "$folder/expected"
for file in crlf bom; do
  texts "$file"
  succeeded "prompts of $file"
  cmp "$output" "$folder/expected" >&2 || fail "$file gives another text"
done
texts blank
says "note: $folder/blank: 3 empty lines are skipped"
grep -av "^note: " "$output" | cmp - "$folder/expected" >&2 || fail "empty lines give another text"
printf '\xff\xfea\0\n\0' >"$folder/utf16"
texts utf16
refused 2 "utf16: contains a zero byte" "UTF-16"
on_two_ranks generate "$folder/run" --prompts "$folder" --max-new 6
refused 2 "--prompts $folder: cannot be read"

# A model of top-k 2: a critical request visits 4 of its experts, one without a complexity 2, as alone.
texts lf --complexity simple,critical --explain
succeeded "a complexity for each prompt"
says "top-k    at most 1 experts a token" "top-k    at most 4 experts a token"
texts lf --complexity medium,critical
succeeded "a medium prompt beside a critical one"
head -n 1 "$output" | cmp - <(head -n 1 "$folder/expected") >&2 || fail "a neighbour changes the text of top-k 2"
cmp -s "$output" "$folder/expected" && fail "four experts change nothing"
on_two_ranks generate "$folder/run" --prompt "solve x" --prompt "prove it, then solve x" --complexity auto --explain --max-new 1
says "top-k    at most 2 experts a token" "top-k    at most 3 experts a token"
texts lf --complexity simple,simple,simple
refused 2 "names 3 for 2 prompts"
texts lf --task cooking
refused 2 "--task" "cooking"

# How a checkpoint asks to sample: defaults of the options.
cp -rL "$folder/run/checkpoints/latest" "$folder/asks"
rm "$folder/asks/cadre.json"  # has the checksum of the file that is replaced
draws() { on_two_ranks generate "$folder/$1" --prompts "$folder/lf" --max-new 20 --seed 3 "${@:2}"; }
texts_of() { grep -av "^note: " "$output"; }
draws run --temperature 0
texts_of >"$folder/greedy"
draws run --temperature 0.4 --top-k 3
texts_of >"$folder/drawn"
draws run
texts_of >"$folder/plain"
cmp -s "$folder/drawn" "$folder/plain" && fail "--temperature and --top-k change nothing"
echo '{"do_sample": true, "temperature": 0.4, "top_k": 3, "top_p": null}' >"$folder/asks/generation_config.json"
draws asks
says "note: generation_config.json of the checkpoint sets --temperature 0.4 --top-k 3"
texts_of | cmp - "$folder/drawn" >&2 || fail "the defaults of the checkpoint are not used"
draws asks --temperature 0
says "note: generation_config.json of the checkpoint sets --top-k 3"
texts_of | cmp - "$folder/greedy" >&2 || fail "an option does not win over the checkpoint"
echo '{"do_sample": false, "temperature": 0.4, "top_k": 3}' >"$folder/asks/generation_config.json"
draws asks
texts_of | cmp - "$folder/plain" >&2 || fail "the defaults of the checkpoint are used without do_sample"
grep -q "generation_config" "$output" && fail "a note on a file that sets nothing"
# A penalty for tokens that the text has already counts without do_sample too.
draws run --repetition-penalty 1.5
texts_of >"$folder/penalised"
cmp -s "$folder/penalised" "$folder/plain" && fail "--repetition-penalty changes nothing"
echo '{"repetition_penalty": 1.5, "temperature": 0.4}' >"$folder/asks/generation_config.json"
draws asks
says "note: generation_config.json of the checkpoint sets --repetition-penalty 1.5"
texts_of | cmp - "$folder/penalised" >&2 || fail "the penalty of the checkpoint is not used"
echo '{"do_sample": true, "top_p": 1.5}' >"$folder/asks/generation_config.json"
draws asks
refused 2 "generation_config.json: top_p = 1.5, allowed: number in [0, 1]"

# Names of files.
name=$(printf 'odd\xff')
on_two_ranks train "$run" "out=$folder/$name"
refused 2 "not UTF-8" "odd"
on_two_ranks eval "$folder/$name"
refused 2 "CHECKPOINT is not UTF-8"
mkdir "$folder/texts"
cp "$folder/text" "$folder/texts/$name"
on_two_ranks train "$run" "data=$folder/texts" "out=$folder/odd" steps=1
succeeded "a text whose name is not UTF-8"
says "data $folder/texts: 1 file"
on_two_ranks generate "$folder/run" --prompt "$name" --max-new 1
succeeded "a prompt that is not UTF-8"
