#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs a program as on a lesser CPU: vector loops, OpenBLAS and oneDNN use what that one has.
# Usage: cpu.sh KIND PROGRAM [ARGUMENT...], or cpu.sh --list
#   KIND  avx2, avx512 or avx512_bf16; own: this machine as it is
# Exit code: the program's, or 77 with one line of reason where this CPU lacks what KIND needs.
set -euo pipefail

kind=${1:-}
case "$kind" in
  --list) echo avx2 avx512 avx512_bf16 own && exit ;;
  avx2) flags=(avx2 fma bmi2) cadre=AVX2 onednn=AVX2 blas=Haswell ;;
  avx512) flags=(avx512f avx512bw avx512cd avx512dq avx512vl) cadre=AVX512 onednn=AVX512_CORE blas=SkylakeX ;;
  avx512_bf16) flags=(avx512_bf16 avx512_vnni) cadre=AVX512_BF16 onednn=AVX512_CORE_BF16 ;;
  own) flags=() ;;
  *) echo "usage: cpu.sh $("$0" --list | tr ' ' '|') PROGRAM [ARGUMENT...]" >&2 && exit 2 ;;
esac
for flag in "${flags[@]}"; do
  grep -qw "$flag" /proc/cpuinfo || { echo "skipped: this CPU has no $flag" >&2 && exit 77; }
done
unset CADRE_MAX_CPU_ISA ONEDNN_MAX_CPU_ISA OPENBLAS_CORETYPE
if [[ "$kind" != own ]]; then export CADRE_MAX_CPU_ISA=$cadre ONEDNN_MAX_CPU_ISA=$onednn; fi
if [[ -n "${blas:-}" ]]; then export OPENBLAS_CORETYPE=$blas; fi  # else by itself: 0.3.21 cannot be told Cooperlake
exec "${@:2}"
