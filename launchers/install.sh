#!/usr/bin/env bash
# Create the virtual environment .venv with pinned packages, or update or repair it:
#
#   bash launchers/install.sh [EXTRA ...]                  extras of setup.py, such as dev
#   PYTHON=/path/to/python3.11 bash launchers/install.sh   with this Python
#
# Needs only Python 3.11 or 3.12; uses uv instead of pip if it is installed. A call with nothing to do returns immediately.
set -euo pipefail
[[ ${PYTHON:-} != */* || $PYTHON == /* ]] || PYTHON=$PWD/$PYTHON
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Packages on PYTHONPATH would count as installed, and pip would install somewhere else.
unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX

die() { echo "install.sh: $*" >&2; exit 2; }

# Prints "VERSION BASE": the version of the Python $1 and the folder of the installation that it belongs to.
describe() { "$1" -I -c 'import os, sys; print("%d.%d.%d" % sys.version_info[:3], os.path.realpath(sys.base_prefix))' 2>/dev/null; }

supported() { [[ $1 == 3.11.* || $1 == 3.12.* ]]; }

# The file of pinned versions for Python $1: megatron-core 0.16.1 is the last for 3.11; later versions need 3.12.
pins_for() { [[ $1 == 3.11.* ]] && echo launchers/pins.txt || echo launchers/pins-py312.txt; }

can_make_environments() { command -v uv >/dev/null || "$1" -I -c 'import venv, ensurepip' 2>/dev/null; }

# Sets python to the one named by PYTHON, else to the first that can be used.
find_python() {
    local candidate found
    if [[ -n ${PYTHON:-} ]]; then
        command -v "$PYTHON" >/dev/null || die "PYTHON=$PYTHON does not exist or is not executable; name a Python 3.11 or 3.12"
        found=$(describe "$PYTHON") ||
            die "PYTHON=$PYTHON does not run as Python 3 ($("$PYTHON" --version 2>&1 | head -n 1)); name a Python 3.11 or 3.12"
        supported "$found" || die "PYTHON=$PYTHON is Python ${found%% *}, but 3.11 or 3.12 is needed"
        can_make_environments "$PYTHON" ||
            die "PYTHON=$PYTHON has no module venv or ensurepip; install it (Debian: apt install python3-venv), or install uv"
        python=$PYTHON
        return
    fi
    for candidate in python3.11 python3.12 python3 python; do
        found=$(describe "$candidate") || continue
        if supported "$found" && can_make_environments "$candidate"; then
            python=$candidate
            return
        fi
    done
    die "no Python 3.11 or 3.12 with venv found; install one, or set its path: PYTHON=/path/to/python3.11 bash $0"
}

# Whether .venv is whole enough to be updated: its Python runs, is the one that made it, and the folder was not moved or copied.
usable() {
    [[ -x .venv/bin/python ]] && supported "$(describe .venv/bin/python)" && .venv/bin/python -I - "$(command -v uv)" <<'END' 2>/dev/null
import csv, importlib.metadata, importlib.util, pathlib, re, sys, sysconfig
home = pathlib.Path(sys.prefix)
assert pathlib.Path(sysconfig.get_path("purelib")).is_dir()
made_as = re.findall(r"""VIRTUAL_ENV=['"]?(/[^'"\n]*)""", (home / "bin" / "activate").read_text())
assert any(pathlib.Path(path).exists() and home.samefile(path) for path in made_as)
if not sys.argv[1] or importlib.util.find_spec("pip"):
    pip = importlib.metadata.distribution("pip")  # its RECORD is missing if its installation was interrupted
    assert all(pip.locate_file(path).exists() for path, *_ in csv.reader(pip.read_text("RECORD").splitlines()))
END
}

# The installed packages with files that are missing or cut short: an installation was killed, or the disk was full.
damaged() {
    .venv/bin/python -I - <<'END'
import csv, importlib.metadata, pathlib

def whole(distribution):
    record = distribution.read_text("RECORD")  # written last; `files` leaves out missing files from Python 3.12 on
    return record is not None and all(
        path.endswith(".pyc") or present(pathlib.Path(distribution.locate_file(path)), int(size or 0))
        for path, _, size in csv.reader(record.splitlines())
    )

def present(file, size):
    return file.exists() and file.stat().st_size >= size

for found in importlib.metadata.distributions():
    folder = pathlib.Path(found._path).name
    if not folder.startswith("~") and not whole(found):  # ~: what an interrupted upgrade moved away
        print(folder.split("-")[0])
END
}

# Arguments: those of `pip install`.
install() {
    if command -v uv >/dev/null && with_uv "$@"; then
        return
    fi
    .venv/bin/python -m pip install --quiet "$@"
}

# uv does not read pip's configuration: pass it on, so that both install the same files.
with_uv() {
    local config
    config=$(.venv/bin/python -m pip config list 2>/dev/null) || config=
    (
        set_for_uv UV_DEFAULT_INDEX index-url ' '
        set_for_uv UV_INDEX extra-index-url ' '
        set_for_uv UV_FIND_LINKS find-links ','
        set_for_uv UV_NO_INDEX no-index ' '
        set_for_uv SSL_CERT_FILE cert ' '
        export UV_INDEX_STRATEGY=unsafe-best-match  # as pip: the best version of all indexes
        uv pip install --quiet --python .venv/bin/python "$@"
    ) || { echo "install.sh: uv failed; trying pip" >&2; return 1; }
}

# Sets the variable $1 to pip's setting $2, with the separator $3 between values, unless it is set.
set_for_uv() {
    local value
    value=$(sed -n "s/^[^=]*\.$2='\(.*\)'\$/\1/p" <<< "$config" | head -n 1 | sed 's/\\n/ /g; s/^ *//; s/  */'"$3"'/g')
    [[ -z $value || -n ${!1:-} ]] || export "$1=$value"
}

create() {
    find_python
    echo "creating .venv with Python $(describe "$python" | cut -d ' ' -f 1) ($(command -v "$python"))"
    if command -v uv >/dev/null && uv venv --quiet --seed --python "$(command -v "$python")" .venv; then
        return
    fi
    rm -rf .venv
    "$python" -m venv .venv || die ".venv could not be created, see above; then run the same command again"
}

remove_broken() {
    [[ ! -L .venv ]] || die ".venv is a link to $(readlink .venv), which is no working environment: repair that or remove the link"
    [[ -f .venv/pyvenv.cfg || -z $(find .venv -type f -print -quit) ]] ||
        die ".venv exists and is not a virtual environment: move it away"
    echo "removing .venv: it is incomplete, was moved or copied, or its Python has changed"
    rm -rf .venv
}

[[ ${1:-} != -h && ${1:-} != --help ]] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit 0; }
extras=$(sed -n '/extras_require/,/^    }/s/^        "\([a-z0-9]*\)": \[.*/\1/p' setup.py)
for extra in "$@"; do
    grep -qxF "$extra" <<< "$extras" || die "no extra named '$extra' in setup.py; it has: $(paste -sd ' ' <<< "$extras")"
done

# One installation at a time. A child that outlives a killed call keeps the lock until it ends.
exec 9<>launchers/pins.txt
if command -v flock >/dev/null; then
    locked=0
    flock -n -E 75 9 || locked=$?
    if [[ $locked == 75 ]]; then
        echo "another installation is running in this folder; waiting for it"
        flock 9
    elif [[ $locked != 0 ]]; then
        echo "install.sh: this file system has no locks: do not run two installations at once" >&2
    fi
fi

if [[ -n ${PYTHON:-} ]]; then
    find_python
    if [[ -x .venv/bin/python ]] && existing=$(describe .venv/bin/python) && [[ $existing != "$(describe "$python")" ]]; then
        die "PYTHON=$PYTHON is Python $(describe "$python"), but .venv was made with $existing. To use the former: rm -r .venv, then the same command"
    fi
fi
[[ ! -e .venv && ! -L .venv ]] || usable || remove_broken
[[ -e .venv ]] || create

# The mark, written last, records what was installed: a checksum of the pins and setup.py, the Python, then the extras.
mark=.venv/.loopmdm-installed
version=$(describe .venv/bin/python | cut -d ' ' -f 1)
pins=$(pins_for "$version")
checksum=$(cat "$pins" setup.py | cksum | tr ' ' '-')-$version
installed=()
[[ ! -f $mark ]] || read -r -a installed < "$mark" || true
wanted=("$checksum" "${installed[@]:1}")
for extra in "$@"; do
    [[ " ${wanted[*]} " == *" $extra "* ]] || wanted+=("$extra")
done
[[ ${wanted[*]} != "${installed[*]}" ]] || exit 0

echo "installing pinned packages into .venv (several minutes the first time)"
rm -f "$mark"
failed="the installation is not complete, see above (no network? disk full?). Run the same command again to continue"
extras=$(IFS=,; echo "${wanted[*]:1}")
install -c "$pins" -e ".${extras:+[$extras]}" || die "$failed"
mapfile -t broken < <(damaged)
if [[ ${#broken[@]} -gt 0 ]]; then
    echo "installing again, because files are missing: ${broken[*]}"
    install --force-reinstall --no-deps -c "$pins" "${broken[@]}" || die "$failed"
    [[ -z $(damaged) ]] || die "files of these packages are still missing: $(damaged | paste -sd ' '). Run rm -r .venv, then the same command"
fi
echo "${wanted[*]}" > "$mark"
