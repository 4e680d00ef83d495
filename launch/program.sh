# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# find_cadre FOLDER: the program that belongs to scripts in FOLDER, a folder of the repository's launch/ or of an installed
# share/cadre: $CADRE, the build of the repository, the installed program, or that of PATH. Sourced by the scripts.
find_cadre() {
  local folder candidate
  if [[ -n "${CADRE:-}" ]]; then
    echo "$CADRE"
    return
  fi
  folder=$(cd "$1" && pwd)
  for candidate in "${folder%/launch*}/build/release/cadre" "${folder%/share/cadre*}/bin/cadre"; do
    if [[ -x "$candidate" && ! -d "$candidate" ]]; then
      echo "$candidate"
      return
    fi
  done
  command -v cadre && return
  echo "${0##*/}: error: no program cadre (hint: build it with cmake --build --preset release, or set CADRE=PATH)" >&2
  return 3
}

# need_arguments LEAST "$@": the usage of the script and exit code 2 when fewer are given, exit code 0 after --help.
need_arguments() {
  local least=$1 code=2
  shift
  if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then code=0; fi
  if ((code == 2 && $# >= least)); then return 0; fi
  sed -n '/Usage: /,/^set/p' "$0" | sed '$d; s/^# //; 1s/.*Usage: /usage: /' >&$((code == 0 ? 1 : 2))
  exit "$code"
}
