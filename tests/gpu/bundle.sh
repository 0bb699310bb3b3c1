#!/usr/bin/env bash
# Collect what the GPU check needs on a machine that has torch with CUDA but no network, in one folder:
#
#   bash tests/gpu/bundle.sh FOLDER [PACKAGE ...]
#
# FOLDER gets wheels/ for the other machine's Python and src/ with the committed files of this checkout. PACKAGE ... replaces the
# list of packages that such a machine usually lacks; versions are those that the tests run with. On the other machine:
#
#   pip install --no-index --no-deps --target FOLDER/site FOLDER/wheels/*.whl
#   PYTHONPATH=FOLDER/site bash FOLDER/src/tests/gpu/check.sh --output RESULTS
#
# Environment: PYTHON, the Python here; TARGET, the version of Python there: 3.11 or 3.12 [3.12]; MACHINE, its processor [x86_64].
set -euo pipefail
repository=$(git -C "$(dirname "${BASH_SOURCE[0]}")" rev-parse --show-toplevel)
[[ $# -gt 0 ]] || { echo "usage: bash tests/gpu/bundle.sh FOLDER [PACKAGE ...]" >&2; exit 2; }
python=${PYTHON:-$repository/.venv/bin/python}
target=${TARGET:-3.12} machine=${MACHINE:-x86_64}
case $target in
    3.11) pins=$repository/launchers/pins.txt ;;
    3.12) pins=$repository/launchers/pins-py312.txt ;;
    *) echo "bundle.sh: TARGET=$target: 3.11 or 3.12 is needed" >&2; exit 2 ;;
esac
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift

packages=("$@")
[[ ${#packages[@]} -gt 0 ]] || packages=(
    deepspeed megatron-core pydantic pydantic_core annotated-types typing-inspection hjson
)

pinned() { # NAME -> NAME==VERSION of the pins, where - and _ are the same
    awk -F== -v name="$1" 'function plain(x) { gsub(/[-_]/, "", x); return tolower(x) } plain($1) == plain(name)' \
        "$pins"
}

fetch_wheel() { # NAME -> a wheel for the target; without one, a pure wheel built here from the source distribution
    local wanted platforms=() tag
    wanted=$(pinned "$1")
    for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
        platforms+=(--platform "${tag}_$machine")
    done
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$target" --implementation cp \
        "${platforms[@]}" --dest "$folder/wheels" "${wanted:-$1}" 2> "$folder/pip.log" && return
    DS_BUILD_OPS=0 "$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$folder/wheels" \
        "${wanted:-$1}" 2>> "$folder/pip.log" || { tail -5 "$folder/pip.log" >&2; return 1; }
}

mkdir -p "$folder/wheels"
for package in "${packages[@]}"; do
    echo "wheel: $package"
    fetch_wheel "$package"
done
rm -rf "$folder/src" && mkdir -p "$folder/src"
git -C "$repository" archive HEAD | tar -x -C "$folder/src"
du -sh "$folder"/* | sort -h
