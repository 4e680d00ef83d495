# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# check_hostfile FILE: whether mpirun may be given it; sourced by the scripts that take a hostfile. mpirun hands each name
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
