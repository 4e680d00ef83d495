# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What the scripts share that start the program.

# find_cadre FOLDER: the program that belongs to scripts in FOLDER, a folder of the repository's launch/ or of an installed
# share/cadre: $CADRE, the build of the repository, the installed program, or that of PATH.
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

# check_hostfile FILE: whether mpirun may be given it. mpirun hands each name
# to ssh, where a name such as -oProxyCommand=... would be an option and run a command.
check_hostfile() {
  local name rest number=0
  local host='^[A-Za-z0-9_][A-Za-z0-9._:-]*(@[A-Za-z0-9_][A-Za-z0-9._:-]*)?$'
  local settings='^([a-z_-]+ *= *[A-Za-z0-9_][A-Za-z0-9._-]*[[:blank:]]*)*(#.*)?$'
  if [[ ! -f "$1" || ! -r "$1" ]]; then
    echo "${0##*/}: error: hostfile $1 is not a readable file (hint: one line per host, NAME slots=N)" >&2
    return 2
  fi
  while read -r name rest || [[ -n "$name" ]]; do
    number=$((number + 1))
    if [[ -z "$name" || "$name" == '#'* ]] || [[ "$name" =~ $host && "$rest" =~ $settings ]]; then continue; fi
    printf '%s: error: hostfile %s:%d: %q, allowed: NAME slots=N (hint: a name is of letters, digits, dots and dashes, and does not begin with a dash)\n' \
      "${0##*/}" "$1" "$number" "$name${rest:+ $rest}" >&2
    return 2
  done <"$1"
}

# train_on_hosts CADRE HOSTFILE RUN.toml [key=value ...]: on all slots of the hosts, with the options of mpirun in $options.
train_on_hosts() {
  local threads=${CADRE_THREADS:-1}
  check_hostfile "$2" || exit
  if ((EUID == 0)); then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
  # shellcheck disable=SC2154  # options are those of the script
  exec mpirun --hostfile "$2" --map-by "slot:PE=$threads" --bind-to core "${options[@]}" \
    -x OMP_NUM_THREADS="$threads" -x OPENBLAS_NUM_THREADS="$threads" "$1" train "$3" compute.threads="$threads" "${@:4}"
}
