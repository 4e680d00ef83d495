#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Man pages that man renders without a warning, completion in a bash, and one that zsh can read. Usage: reference_test.sh CADRE
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

alone reference "$folder/share"
succeeded reference
pages=$folder/share/man/man1

# A page for each command and part that the program lists.
mapfile -t commands < <("$program" --help | sed -n 's/^  \([a-z][a-z]*\)  .*/\1/p')
((${#commands[@]} > 10)) || fail "no commands in --help"
for command in "${commands[@]}" plan-memory report-diff; do
  [[ -s $pages/cadre-$command.1 ]] || fail "no page cadre-$command.1"
done

# --help fits 100 columns.
for command in "" "${commands[@]}" "plan memory"; do
  # shellcheck disable=SC2086  # two words
  "$program" $command --help >"$output"
  if grep -nE '^.{101,}' "$output"; then fail "$command --help is wider than 100 columns"; fi
done

if command -v man >/dev/null && command -v groff >/dev/null; then
  for page in "$pages"/*.1; do
    MANWIDTH=100 LC_ALL=C.UTF-8 man --warnings -l "$page" >"$folder/page" 2>"$output" || fail "man: $page"
    [[ ! -s $output ]] || fail "man warns of $page"
    grep -q "^NAME" "$folder/page" || fail "$page has no NAME"
  done
  MANWIDTH=200 man -l "$pages/cadre-train.1" >"$output" 2>/dev/null
  says "SYNOPSIS" "cadre train RUN.toml" "--print-config" "[train]" "learning_rate = 0.001" "peak learning rate" "EXIT STATUS"
else
  echo "no man: pages are not rendered"
fi

# completes WORDS... : what bash offers for the last word, in $output.
completes() {
  bash --norc -c '
    source "$1"
    shift
    COMP_WORDS=("$@")
    COMP_CWORD=$(($# - 1))
    _cadre
    printf "%s\n" "${COMPREPLY[@]}"' bash "$folder/share/bash-completion/completions/cadre" "$@" >"$output"
}
offers() { for word in "$@"; do grep -qxF -- "$word" "$output" || fail "bash does not offer $word"; done; }
completes cadre tr
offers train
completes cadre plan me
offers memory
completes cadre train --pr
offers --print-config --print-out
completes cadre train train.lea
offers train.learning_rate=
completes cadre train train.schedule = w
offers wsd
completes cadre generate --p
offers --prompt
cd "$folder"
completes cadre train ru
offers run.toml
if [[ "$(completes cadre inspect train.le; cat "$output")" == *train.learning_rate* ]]; then
  fail "bash offers keys where none are taken"
fi

if command -v zsh >/dev/null; then zsh -n "$folder/share/zsh/vendor-completions/_cadre" || fail "zsh cannot read its completion"; fi
