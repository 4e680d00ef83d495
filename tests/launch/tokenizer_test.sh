#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A run with a tokenizer of its own on two ranks: it trains, its checkpoint keeps the tokenizer, and text comes out of it
# again. Usage: tokenizer_test.sh CADRE [LAUNCHER...]
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

run=$folder/run.toml
checkpoint=$folder/run/checkpoints/latest
num_tokens=0

# add_token TEXT: TEXT, as JSON spells it, is the next token.
add_token() {
  vocabulary+="\"$1\": $num_tokens, "
  num_tokens=$((num_tokens + 1))
}

# write_tokenizer FILE MERGE...: all bytes, what each MERGE ("a b") makes, and <|end|> behind them.
write_tokenizer() {
  local file=$1 byte character merge merges="" next=256
  shift
  vocabulary="" num_tokens=0
  for ((byte = 0; byte < 256; ++byte)); do
    character=$byte
    if ((byte < 33 || byte > 126 && byte < 161 || byte == 173)); then character=$((next++)); fi
    add_token "$(printf '\\u%04x' "$character")"
  done
  for merge in "$@"; do
    add_token "${merge/ /}"
    merges+="\"$merge\", "
  done
  cat >"$file" <<END
{"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
 "added_tokens": [{"id": $num_tokens, "content": "<|end|>", "special": true}],
 "model": {"type": "BPE", "vocab": {${vocabulary%, }}, "merges": [${merges%, }]}}
END
}

mkdir -p "$folder/tokenizer/additional_chat_templates" "$folder/other"
echo "{{ messages }}" >"$folder/tokenizer/chat_template.jinja"
echo "{{ tools }}" >"$folder/tokenizer/additional_chat_templates/tool.jinja"
echo '{"eos_token_id": [265], "top_p": 0.5}' >"$folder/tokenizer/generation_config.json"
# keeps_all FOLDER: it has all files of the tokenizer.
keeps_all() {
  local file
  for file in tokenizer.json chat_template.jinja additional_chat_templates/tool.jinja; do
    cmp "$1/$file" "${2:-$folder/tokenizer}/$file" >&2 || fail "$1 has another $file"
  done
  tr -d ' \n' <"$1/generation_config.json" | grep -qF '"eos_token_id":[265]' || fail "$1 has other end tokens"
}
write_tokenizer "$folder/tokenizer/tokenizer.json" "l i" "n e" "li ne" "t e" "te l" "tel l" "\\u0120 a" "\\u0120a n" "\\u0120an d"
write_tokenizer "$folder/other/tokenizer.json" "l i" "e l" "t h" "li n" "o f" "n e" "n d" "e s" "x t"
short=(train "$run" "data.tokenizer=$folder/tokenizer" model.vocab_size=266)

on_two_ranks train "$run" "data.tokenizer=$folder/tokenizer"
refused 2 "model.vocab_size = 256, allowed: integer >= 266" "$folder/tokenizer"
on_two_ranks train "$run" data.tokenizer=nothing
refused 2 "data.tokenizer = nothing: No such file" "tokenizer.json"
echo '{"model": {' >"$folder/damaged.json"
on_two_ranks train "$run" "data.tokenizer=$folder/damaged.json"
refused 2 "$folder/damaged.json: tokenizer.json is not JSON"

on_two_ranks "${short[@]}"
succeeded train
keeps_all "$checkpoint"
trained_loss=$(sed -n 's/^step 3 | validation loss //p' "$output")
[[ "$trained_loss" == 5.* ]] || fail "no validation loss near ln 266 = 5.58"

# What is left of the run is enough to go on with it.
mv "$folder/tokenizer" "$folder/moved"
on_two_ranks eval "$checkpoint" --data "$folder/text" --batches 2
succeeded eval
says "loss $trained_loss nats a token"
prompt="专家 line <|end|>"
generate=(generate "$checkpoint" --prompt "$prompt" --max-new 40 --temperature 2)
on_two_ranks "${generate[@]}"
succeeded generate
cp "$output" "$folder/generated"
[[ "$(head -c "$(printf %s "$prompt" | wc -c)" "$output")" == "$prompt" ]] || fail "the prompt does not come first"
alone "${generate[@]}"
cmp "$output" "$folder/generated" >&2 || fail "the text depends on the number of ranks"

# Tokens mean the same in every run that goes on from here.
on_two_ranks "${short[@]/tokenizer=*/tokenizer=$folder/other}" steps=4
refused 2 "trained with another tokenizer" "$folder/other"
on_two_ranks "${short[@]/tokenizer=*/tokenizer=bytes}" steps=4
refused 2 "trained with another tokenizer" "\"bytes\""
on_two_ranks "${short[@]/tokenizer=*/tokenizer=$checkpoint}" steps=4
succeeded "going on with the tokenizer in the checkpoint"
says "resumed after step 3"
alone experts grow "$folder/run" --out "$folder/grown"
succeeded "experts grow"
keeps_all "$folder/grown/checkpoints/latest" "$folder/moved"
rm -r "$folder/run"
on_two_ranks train "$folder/grown/run.toml" steps=5
succeeded "training after growth"
alone export "$folder/grown/checkpoints/latest" --out "$folder/exported"
succeeded export
keeps_all "$folder/exported" "$folder/moved"
alone generate "$folder/exported" --prompt "line" --max-new 3
succeeded "generate from an export"
# An empty prompt, where the tokenizer begins each text with a token.
alone generate "$folder/exported" --prompt "" --max-new 3
refused 2 "the prompt is empty"
echo '{"add_bos_token": true, "bos_token": "<|end|>"}' >"$folder/exported/tokenizer_config.json"
alone generate "$folder/exported" --prompt "" --max-new 3
succeeded "generate from nothing but the token that begins a text"

# Where tokens are bytes, other programs find a tokenizer too, and it is the tokenizer of bytes here.
on_two_ranks train "$run" "out=$folder/bytes" steps=2
succeeded "training on bytes"
bytes=$folder/bytes/checkpoints/latest
grep -qF '"a": 97' "$bytes/tokenizer.json" || fail "a checkpoint of bytes has no tokenizer.json"
for file in tokenizer_config.json generation_config.json; do
  [[ -f "$bytes/$file" ]] || fail "a checkpoint of bytes has no $file"
done
on_two_ranks train "$run" "out=$folder/bytes" "data.tokenizer=$bytes" steps=3
succeeded "going on with the tokenizer of bytes in the checkpoint"
says "resumed after step 2"

# The same tokens from a file.
tokenize=(tokenize "$folder/text" --tokenizer "$folder/moved")
alone "${tokenize[@]}" --out "$folder/tokens" --end-of-text none --threads 2
succeeded tokenize
says "tokens.bin: 1 documents, $(wc -c <"$folder/text") bytes" "no token between documents"
on_two_ranks train "$run" "data=$folder/tokens" "data.tokenizer=$folder/moved" model.vocab_size=266 "out=$folder/ready"
succeeded "training on a token file"
says "validation loss $trained_loss"
alone "${tokenize[@]}" --out "$folder/tokens"
refused 2 "tokens.bin exists already" "--out"
alone "${tokenize[@]}" --out "$folder/more" --end-of-text end
refused 2 "--end-of-text = end, allowed: auto | none | a token id"
alone "${tokenize[@]}" --out "$folder/no/folder"
refused 2 "$folder/no/folder.bin" "cannot be created"
alone tokenize "$folder/text" --out "$folder/more"
refused 2 "--tokenizer is missing"
alone tokenize --tokenizer bytes --out "$folder/more"
refused 2 "FILE is missing"

# JSON Lines: documents with a newline between them, as in a folder.
sed 's/.*/{"body": "&"}/' "$folder/text" >"$folder/text.jsonl"
on_two_ranks train "$run" data.tokenizer=bytes "out=$folder/lines" "data=$folder/text.jsonl" data.format=json_lines data.text_field=body
succeeded "training on JSON Lines"
says "1 file, $(($(wc -c <"$folder/text") - $(wc -l <"$folder/text"))) bytes" "$(($(wc -c <"$folder/text") - 1)) tokens, a newline between documents"
