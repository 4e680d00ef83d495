#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The source archive of the Python package, installed from it by pip against an installed Cadre, where scikit-build-core is
# (Debian 12 has none). CADRE_TEST_PYTHON names a Python that is not in PATH. Usage: python_package_test.sh PREFIX PYTHON
set -euo pipefail

prefix=$1
source=$(cd "$(dirname "$0")/../../launch/python" && pwd)
python=""
for candidate in "${CADRE_TEST_PYTHON:-}" "$2" python3; do
  if [[ -n "$candidate" ]] && "$candidate" -c 'import scikit_build_core, numpy, mpi4py, pip' 2>/dev/null; then
    python=$candidate && break
  fi
done
if [[ -z "$python" ]]; then
  echo "skipped: no Python with scikit-build-core, numpy and mpi4py (CADRE_TEST_PYTHON)"
  exit 77
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$source" && "$python" -c "from scikit_build_core import build; print(build.build_sdist('$folder'))")
archive=$(find "$folder" -name 'cadre-*.tar.gz')
files=$(tar -tzf "$archive")
for file in CMakeLists.txt module.cpp pyproject.toml cadre/__init__.py cadre/_core.pyi cadre/py.typed cadre/torch.py; do
  grep -q "/$file\$" <<<"$files" || { echo "FAILED: the archive has no $file"; exit 1; }
done

# Outside of the source tree an installed Cadre is needed, and its absence is said.
if CMAKE_PREFIX_PATH=$folder "$python" -m pip install --quiet --no-build-isolation --no-deps --no-index \
  --target "$folder/none" "$archive" >"$folder/log" 2>&1; then
  echo "FAILED: installed without Cadre" && exit 1
fi
grep -q "Cadre is not installed" "$folder/log" || { cat "$folder/log" && exit 1; }

CMAKE_PREFIX_PATH=$prefix "$python" -m pip install --quiet --no-build-isolation --no-deps --no-index \
  --target "$folder/site" "$archive"
cd "$folder"
PYTHONPATH=$folder/site "$python" -c "
import os, cadre, numpy as np
assert cadre.__file__ == '$folder/site/cadre/__init__.py', cadre.__file__
assert os.path.exists('$folder/site/cadre/py.typed')
assert cadre.plan([[1, 0], [3, 0]], 4, 2).row_counts.tolist() == [2, 1]
with cadre.Dispatcher(num_experts=2, top_k=1, width=2) as dispatcher:
    batch = dispatcher.dispatch([[1, 2], [3, 4]], [[1], [0]], [[1], [1]])
    assert batch.rows.tolist() == [[3, 4], [1, 2]]
    del batch
print('installed', cadre.__version__)"
