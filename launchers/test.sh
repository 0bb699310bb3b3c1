#!/usr/bin/env bash
# From a bare machine to the test result: set-up, linters, then the tests. Further arguments go to pytest:
#
#   bash launchers/test.sh [-k EXPRESSION ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launchers/install.sh dev
export PATH="$PWD/.venv/bin:$PATH"

ruff check .
ruff format --check .
codespell
python -m pytest "$@"
