#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Breaks formulas one at a time, as mutations.txt lists them, and runs the tests that must notice.
# Usage: mutate.sh FOLDER [PATTERN], in the root of the tree; or mutate.sh --check
#   FOLDER   for a copy of the tree, in which each mutation is built; kept, so that another run compiles little
#   PATTERN  only mutations whose first line matches it
#   --check  whether every text stands exactly once in its file; builds nothing
# Exit code 0: every mutation is noticed, or says why it cannot be.
set -euo pipefail

list=$(dirname "${BASH_SOURCE[0]}")/mutations.txt
declare -a files titles before after tests reasons

read_list() {
  local line i=-1
  while IFS= read -r line; do
    case "$line" in
      "== "*)
        line=${line#== }
        [[ "$line" =~ ${1:-.} ]] || { skipping=1 && continue; }
        skipping=0
        i=$((i + 1))
        files[i]=${line%%: *} titles[i]=${line#*: } reasons[i]=""
        ;;
      "#"* | "") ;;
      *) ((skipping)) || case "$line" in
        "- "*) before[i]=${line#- } ;;
        "+ "*) after[i]=${line#+ } ;;
        "? "*) tests[i]=${line#\? } ;;
        "! "*) reasons[i]=${line#! } ;;
        *) echo "$list: what is '$line'?" >&2 && exit 2 ;;
      esac ;;
    esac
  done <"$list"
}

# stands_once TREE I
stands_once() {
  local text rest
  text=$(<"$1/${files[$2]}")
  rest=${text#*"${before[$2]}"}
  [[ "$rest" != "$text" && "$rest" != *"${before[$2]}"* ]]
}

check_list() {
  local i failed=0
  for i in "${!files[@]}"; do
    [[ -e "$1/${files[i]}" ]] && stands_once "$1" "$i" && continue
    echo "${files[i]}: stands not exactly once: ${before[i]}" >&2
    failed=1
  done
  return "$failed"
}

# target_of TEST: the program that holds it.
target_of() {
  local kind=""
  ! grep -q "FILE $1_test\.cpp.*gpu" "$tree/tests/CMakeLists.txt" || kind=gpu_
  echo "${1%%/*}_${kind}tests"
}

# notices TEST: builds it and says whether it fails; fails itself when nothing is built.
notices() {
  local target code=0
  target=$(target_of "$1")
  cmake --build "$build" --target "$target" >"$folder/build.log" 2>&1 || return 2
  timeout 300 "$build/tests/$target" "$1" >"$folder/test.log" 2>&1 || code=$?
  ((code != 0))
}

# try I: the test that noticed, or "".
try() {
  local test code file=$tree/${files[$1]} text
  cp -p "$file" "$folder/original"
  text=$(<"$file")
  printf '%s\n' "${text/"${before[$1]}"/"${after[$1]}"}" >"$file"
  found=""
  for test in ${tests[$1]}; do
    code=0
    notices "$test" || code=$?
    if ((code == 2)); then found="DOES NOT COMPILE"; fi
    if ((code == 0)); then found=$test; fi
    [[ -z "$found" ]] || break
  done
  cp "$folder/original" "$file"
}

skipping=0
if [[ "${1:-}" == --check ]]; then
  read_list
  check_list .
  exit
fi
folder=${1:?a folder} tree=$1/tree build=$1/tree/build/release
read_list "${2:-.}"
check_list .
mkdir -p "$tree"
git ls-files -z | while IFS= read -r -d '' path; do
  cmp -s "$path" "$tree/$path" || { mkdir -p "$tree/$(dirname "$path")" && cp -p "$path" "$tree/$path" && touch "$tree/$path"; }
done
export OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
(cd "$tree" && cmake --preset release -DCADRE_TESTS=ON >"../configure.log")
mapfile -t all < <(tr ' ' '\n' <<<"${tests[*]}" | sort -u)
for test in "${all[@]}"; do
  code=0
  notices "$test" || code=$?
  ((code == 1)) || { tail -n 20 "$folder/build.log" "$folder/test.log" >&2 && echo "$test fails without any mutation" >&2 && exit 1; }
done
failed=0 survivors=0 table=""
for i in "${!files[@]}"; do
  try "$i"
  verdict=${found:-SURVIVED}
  if [[ "$found" == DOES* || (-z "$found" && -z "${reasons[i]}") || (-n "$found" && -n "${reasons[i]}") ]]; then failed=1; fi
  if [[ -z "$found" ]]; then survivors=$((survivors + 1)); fi
  row=$(printf '%3d  %-24s  %s: %s%s' "$((i + 1))" "$verdict" "${files[i]}" "${titles[i]}" "${reasons[i]:+ (${reasons[i]})}")
  echo "$row"
  table+=$row$'\n'
done
echo
echo "$table"
echo "mutations ${#files[@]}, survivors $survivors"
exit "$failed"
