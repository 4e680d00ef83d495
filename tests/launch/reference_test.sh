#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Man pages that man renders without a warning, completion in a bash and in an interactive zsh. Usage: reference_test.sh CADRE
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

# zsh_offers LINE TEXT: an interactive zsh that gets LINE and a tab shows TEXT in its list or in the line that it makes of it.
zsh_offers() {
  # shellcheck disable=SC2016 # zsh expands them
  timeout 60 zsh -f -c '
    zmodload zsh/zpty
    zpty shell "zsh -f -i"
    zpty -w shell "PS1=; fpath=($1 \$fpath); autoload -U compinit; compinit -u -D"
    zpty -w shell "show() { print -r -- \"<\$BUFFER>\" }; zle -N show; bindkey ^X show; print REA\"\"DY"
    zpty -r shell out "*READY*"
    zpty -w -n shell "$2"$'"'\t\x18'"'
    zpty -r shell out "*$3*"' zsh "$folder/share/zsh/vendor-completions" "$1" "$2" || fail "zsh does not offer $2 for $1"
}
if command -v zsh >/dev/null; then
  zsh_offers "cadre tra" "<cadre train >"
  zsh_offers "cadre plan mem" "<cadre plan memory >"
  zsh_offers "cadre generate --cache" "<cadre generate --cache-mib >"
  zsh_offers "cadre train run.toml train.lea" "<cadre train run.toml train.learning_rate=>"
  zsh_offers "cadre train run.toml train.schedule=" "wsd"
else
  echo "no zsh: its completion is not tried"
fi
