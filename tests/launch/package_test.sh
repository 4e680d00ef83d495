#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The .deb that cpack makes: what is in it, and its scripts run from where it is unpacked, in a folder that is none of ours.
# Usage: package_test.sh BUILD [MIRROR]. With a MIRROR, such as the file:// or http:// address of a Debian mirror, also
# installs it in a clean root (mmdebstrap) and trains there.
set -euo pipefail

build=$1
mirror=${2:-}
for tool in cpack dpkg-deb dpkg-shlibdeps; do
  command -v "$tool" >/dev/null || { echo "no $tool"; exit 77; }
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
fail() {
  echo "FAILED: $1" >&2
  exit 1
}

cpack --config "$build/CPackConfig.cmake" -B "$folder" >"$folder/log" 2>&1 || { cat "$folder/log" >&2; fail cpack; }
deb=$(find "$folder" -maxdepth 1 -name 'cadre_*.deb')
[[ -s $deb ]] || fail "no package"
dpkg-deb --contents "$deb" >"$folder/contents"
for file in bin/cadre include/cadre/comm/exchange/plan.hpp share/man/man1/cadre-train.1 \
  share/bash-completion/completions/cadre share/zsh/vendor-completions/_cadre share/cadre/quickstart \
  share/cadre/supervise share/cadre/slurm/train.sbatch share/cadre/mpirun/one-node.sh \
  share/cadre/configs/quickstart.toml share/cadre/containers/cadre.def share/cadre/modulefiles/cadre/; do
  grep -q "\./usr/$file" "$folder/contents" || fail "no $file in the package"
done
grep -q '/usr/lib.*/libcadre_comm' "$folder/contents" || fail "no libraries in the package"
dpkg-deb --field "$deb" Depends | grep -q 'openmpi-bin.*libopenmpi3\|libopenmpi3.*openmpi-bin' || fail "it depends on no MPI"

dpkg-deb --extract "$deb" "$folder/root"
share=$folder/root/usr/share/cadre
mkdir "$folder/elsewhere"
cd "$folder/elsewhere"
for i in {1..300}; do echo "line $i"; done >text
small=(data=text steps=2 train.eval_every=0 train.warmup_steps=0 train.eval_batches=1 model.hidden_size=32
  model.moe_intermediate_size=32 model.intermediate_size=64 data.sequence_length=32)
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
unset CADRE
"$share/mpirun/one-node.sh" 2 "$share/configs/quickstart.toml" "${small[@]}" out=one >"$folder/log" 2>&1 ||
  { cat "$folder/log" >&2; fail "one-node.sh"; }
[[ -e one/FINISHED ]] || fail "one-node.sh did not finish"
"$share/supervise" "$share/configs/quickstart.toml" "${small[@]}" out=two >"$folder/log" 2>&1 ||
  { cat "$folder/log" >&2; fail "supervise"; }
[[ -e two/FINISHED ]] || fail "supervise did not finish"
"$share/quickstart" --data text --ranks 2 --steps 3 --out three >"$folder/log" 2>&1 ||
  { cat "$folder/log" >&2; fail "quickstart"; }
[[ -e three/FINISHED ]] || fail "quickstart did not finish"
(($(wc -l <"$folder/log") <= 15)) || { cat "$folder/log" >&2; fail "quickstart says more than 15 lines"; }
grep -q '^held out: .*loss' "$folder/log" || { cat "$folder/log" >&2; fail "quickstart says no loss"; }
grep -q '^text: A wise man ' "$folder/log" || { cat "$folder/log" >&2; fail "quickstart says no text"; }

for script in mpirun/one-node.sh mpirun/two-hosts.sh mpirun/ucx.sh supervise; do
  code=0
  "$share/$script" >"$folder/log" 2>&1 || code=$?
  if ((code != 2)) || ! grep -qi "usage: .*RUN.toml" "$folder/log"; then fail "$script without arguments: code $code, no usage"; fi
done

if [[ -z $mirror ]]; then exit 0; fi
for tool in mmdebstrap unshare; do
  command -v "$tool" >/dev/null || { echo "no $tool for a clean root"; exit 77; }
done
mmdebstrap --variant=minbase --mode=auto --include=ca-certificates bookworm "$folder/clean" "$mirror" \
  --customize-hook="copy-in $deb /tmp" \
  --customize-hook="chroot \"\$1\" sh -c 'apt-get install -y --no-install-recommends /tmp/cadre_*.deb fortunes-min fortunes'" \
  --customize-hook="chroot \"\$1\" env HOME=/root /usr/share/cadre/quickstart --ranks 2 --steps 20 --out /root/run" ||
  fail "in a clean root"
[[ -e $folder/clean/root/run/FINISHED ]] || fail "the quickstart of a clean root did not finish"
