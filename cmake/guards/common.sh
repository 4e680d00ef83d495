# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What the guards share. Sourced with the root of the tree as $1.
set -euo pipefail

cd "$1"

# list_files PATTERN...: the files of the tree whose path fits one of the shell patterns: what git knows or would add,
# or, where the tree is no git checkout, everything outside build/.
list_files() {
  local file pattern
  if [[ "$(git rev-parse --show-toplevel 2>/dev/null)" == "$PWD" ]]; then
    git ls-files --cached --others --exclude-standard
  else
    find . -type f -not -path './build/*' -printf '%P\n'
  fi | sort | while IFS= read -r file; do
    [[ -f "$file" ]] || continue
    for pattern in "$@"; do
      # shellcheck disable=SC2053  # the right-hand side is a pattern
      if [[ "$file" == $pattern ]]; then echo "$file"; break; fi
    done
  done
}

# list_scripts: the shell scripts, whatever their name.
list_scripts() {
  list_files '*' | while IFS= read -r file; do
    if [[ "$file" == *.sh ]] || { IFS= read -r first && [[ "$first" == '#!'*bash* ]]; } <"$file" 2>/dev/null; then
      echo "$file"
    fi
  done
}

offences=0

# offence TEXT: prints one line; the guard fails at its end.
offence() {
  echo "$1" >&2
  offences=$((offences + 1))
}

finish() {
  if ((offences > 0)); then
    echo "$(basename "$0"): $offences offence(s)" >&2
    exit 1
  fi
}
