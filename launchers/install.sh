#!/usr/bin/env bash
# Create the virtual environment .venv with pinned packages, or update it:
#
#   bash launchers/install.sh [EXTRA ...]      extras of setup.py, such as dev
#
# Needs only Python 3.11 or 3.12. A second call with unchanged pins returns immediately.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { echo "install.sh: $*" >&2; exit 2; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3 python; do
        [[ -n $candidate ]] || continue
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "no Python 3.11 or 3.12 with venv found; install one, or set its path: PYTHON=/path/to/python3.11 bash $0"
}

# The mark file records what was installed: a checksum of pins.txt and setup.py, then the extras.
mark=.venv/.loopmdm-installed
checksum=$(cat launchers/pins.txt setup.py | cksum | tr ' ' '-')
installed=()
[[ ! -x .venv/bin/python || ! -f $mark ]] || read -r -a installed < "$mark"
extras=("$@")
if [[ ${installed[0]:-} == "$checksum" ]]; then
    missing=()
    for extra in "${extras[@]}"; do
        [[ " ${installed[*]:1} " == *" $extra "* ]] || missing+=("$extra")
    done
    [[ ${#missing[@]} -gt 0 ]] || exit 0
    extras=("${installed[@]:1}" "${missing[@]}")
fi

if [[ ! -x .venv/bin/python ]]; then
    python=$(find_python)
    echo "creating .venv with $("$python" --version)"
    "$python" -m venv .venv
fi
echo "installing pinned packages into .venv (several minutes the first time)"
.venv/bin/python -m pip install --quiet -c launchers/pins.txt -e ".$(IFS=,; echo "${extras[*]:+[${extras[*]}]}")"
echo "$checksum ${extras[*]}" > "$mark"
