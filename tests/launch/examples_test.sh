#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The examples of an installed prefix, built there through find_package and pkg-config, do what they say.
# Usage: examples_test.sh PREFIX BUILD_FOLDER mpirun [FLAG...]
prefix=$1
build=$2
mpirun=("${@:3}")
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$prefix/bin/cadre"

sources=$prefix/share/cadre/examples
run() {
  code=0
  timeout "$time_limit" "$@" >"$output" 2>&1 || code=$?
}

run cmake -S "$sources" -B "$build/examples" -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$prefix"
succeeded "configuring with find_package"
time_limit=500
run cmake --build "$build/examples"
succeeded "building with find_package"
time_limit=120

# All that CMake knows of Cadre, pkg-config knows too.
export PKG_CONFIG_PATH=
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name cadre.pc)")
read -ra flags < <(pkg-config --cflags --libs cadre)
run "${CXX:-c++}" -std=c++20 "$sources/own_expert.cpp" -o "$build/own_expert_of_pkg_config" "${flags[@]}"
succeeded "building with pkg-config"
[[ "$(pkg-config --modversion cadre)" == "$("$prefix/bin/cadre" --version | grep -oE '[0-9]+\.[0-9]+\.[0-9]+' | head -1)" ]] ||
  fail "cadre.pc and the program have different versions"

for program in "$build/examples/own_expert" "$build/own_expert_of_pkg_config"; do
  for ranks in 1 4; do
    run "${mpirun[@]}" -n "$ranks" "$program"
    succeeded "$program on $ranks ranks"
    (($(grep -c '^largest error [0-9.]*e-0[789]$\|^largest error 0.0e+00$' "$output") == ranks)) || fail "own_expert on $ranks ranks"
  done
done

# Plugins: the router and the exchange of the example, and those that cannot be used.
program=$prefix/bin/cadre
plugin=$(find "$build/examples" -name 'libown_router.so')
on_two_ranks train "$folder/run.toml" "model.plugin=$plugin" model.router=plugin exchange.strategy=plugin "out=$folder/own"
succeeded "a run with the plugin"
(($(grep -cE '^own exchange: rank [01] sent [1-9][0-9]* bytes$' "$output") >= 2)) || fail "the exchange of the plugin was not used"
# Experts in a ring: of the second choices none is further than one from the first.
on_two_ranks train "$folder/run.toml" "out=$folder/built_in"
succeeded "the same run without"
loss() { grep -o '"loss":[^,]*' "$1/metrics.jsonl" | head -1; }
[[ "$(loss "$folder/own")" != "$(loss "$folder/built_in")" ]] || fail "the router of the plugin changes nothing"
grep -qF "\"plugin\": \"$plugin\"" "$folder/own/checkpoints/latest/config.json" || fail "config.json does not name the router's plugin"
on_two_ranks train "$folder/run.toml" "model.plugin=$plugin" exchange.strategy=plugin "out=$folder/own_exchange"
succeeded "a run with the exchange of the plugin alone"
says "own exchange: rank"
[[ "$(loss "$folder/own_exchange")" == "$(loss "$folder/built_in")" ]] || fail "the exchange of the plugin changes losses"
grep -qF "$plugin" "$folder/own_exchange/checkpoints/latest/config.json" && fail "config.json names the plugin of an exchange"
on_two_ranks train "$folder/run.toml" "model.plugin=$folder/none.so" model.router=plugin
refused 2 "model.plugin = $folder/none.so: no such file"
on_two_ranks train "$folder/run.toml" "model.plugin=$plugin"
refused 2 "is not used"
on_two_ranks train "$folder/run.toml" model.router=plugin
refused 2 "model.plugin = \"\" with router = plugin"
broken_plugin() { # SOURCE
  echo "$1" >"$folder/broken.cpp"
  "${CXX:-c++}" -shared -fPIC "$folder/broken.cpp" -o "$folder/broken.so"
}
broken_plugin 'extern "C" int cadre_plugin_version() { return 999; }'
on_two_ranks train "$folder/run.toml" "model.plugin=$folder/broken.so" model.router=plugin
refused 2 "is for version 999 of plugins, this Cadre has version"
broken_plugin 'extern "C" int another() { return 1; }'
on_two_ranks train "$folder/run.toml" "model.plugin=$folder/broken.so" model.router=plugin
refused 2 "exports no cadre_plugin_version"
broken_plugin "extern \"C\" int cadre_plugin_version() { return $(sed -n 's/.*kPluginVersion = \([0-9]*\).*/\1/p' "$prefix/include/cadre/comm/base/plugin.hpp"); }"
on_two_ranks train "$folder/run.toml" "model.plugin=$folder/broken.so" model.router=plugin
refused 2 "exports no cadre_make_selector"
on_two_ranks train "$folder/run.toml" "model.plugin=$folder/broken.so" exchange.strategy=plugin
refused 2 "exports no cadre_make_exchange"

on_two_ranks train "$folder/run.toml" trace.first_step=2 trace.steps=1
succeeded "a traced run"
run "$build/examples/read_traces" "$folder/run"
succeeded "reading its traces"
# Which phases had to wait depends on the machine: every row is held against the sum of the slices in the trace files.
python3 - "$folder/run/trace" "$output" <<'END' || fail "the rows of read_traces are not the sums of the traces"
import collections, json, pathlib, re, sys

expected = collections.Counter()
for path in pathlib.Path(sys.argv[1]).glob("rank*.json"):
    trace = json.loads(path.read_text())
    for entry in trace["traceEvents"]:
        if entry["ph"] == "X" and entry["cat"] in ("compute", "wait"):
            expected[trace["otherData"]["rank"], entry["cat"], entry["args"]["phase"]] += entry["dur"] / 1000
rows = re.findall(r"^rank (\d+) (compute|wait) +(.*?) +([0-9.]+)$", pathlib.Path(sys.argv[2]).read_text(), re.M)
found = {(int(rank), kind, phase): float(ms) for rank, kind, phase, ms in rows}
assert all((rank, "compute", "experts") in found for rank in (0, 1)), "no time of the experts"
assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
wrong = {key: (found[key], ms) for key, ms in expected.items() if abs(found[key] - ms) > 0.002}
assert not wrong, wrong
END
run "$build/examples/read_traces" "$folder/none"
((code == 1)) || fail "a folder without traces is no error"
