# Functions for pretrain.sh and prepare_data.sh inside a SLURM job; they source this file from the repository's launchers/.
# Sets: repository. Exports: PYTHONPATH, PYTHONSAFEPATH.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# The repository's .venv, else a python3 that has the package $1.
find_python() {
    local python=$repository/.venv/bin/python
    if [[ ! -x $python || ! $("$python" -c 'print(1)' 2>/dev/null) ]]; then
        [[ ! -e $repository/.venv ]] || die "$repository/.venv has no working Python: repair it
    cd $repository && bash launchers/install.sh"
        python=python3
        python3 -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)" 2>/dev/null ||
            die "$repository/.venv is missing, and python3 has no $1: install the project first
    cd $repository && bash launchers/install.sh"
    fi
    echo "$python"
}

# PYTHONSAFEPATH: a `pretrain.py` in the folder of submission must not take the place of ours.
export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
