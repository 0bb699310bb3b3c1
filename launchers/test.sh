#!/usr/bin/env bash
# Set up the environment, then run the linters and the tests:
#
#   bash launchers/test.sh [--fast] [pytest options]
#
# --fast leaves out the tests marked `distributed`, `end_to_end` or `slow`, but for the few marked `fast`.
# Without it all tests run. Other arguments go to pytest, such as -k EXPRESSION or a path. As many processes run tests as there
# are cores, up to 8; `-n 0` runs them in one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

selection=()
if [[ ${1:-} == --fast ]]; then
    shift
    selection=(-m "fast or not (distributed or end_to_end or slow)")
fi

cores=$(nproc)
workers=$((cores < 8 ? cores : 8))

bash launchers/install.sh dev
export PATH="$PWD/.venv/bin:$PATH"

ruff check .
ruff format --check .
codespell
python -m pytest --numprocesses "$workers" --dist loadfile --no-loadscope-reorder "${selection[@]}" "$@"
