#!/usr/bin/env bash
# Data preparation under SLURM, on CPUs only:
#
#   sbatch [sbatch options] launchers/prepare_data.sh --input ... --output ... [options of loopmdm prepare]
#   sbatch --cpus-per-task 32 launchers/prepare_data.sh --input ... --output ...
#
# Options on the sbatch command line override the lines below.
#
#SBATCH --job-name=loopmdm-prepare
#SBATCH --nodes=1
#SBATCH --ntasks=1
# In the folder of the submission. A folder that does not exist would end the job without any log.
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
set -euo pipefail

die() { echo "prepare_data.sh: $*" >&2; exit 2; }

usage="usage: sbatch [sbatch options] launchers/prepare_data.sh --input ... --output ... [options of loopmdm prepare]"
[[ $# -gt 0 ]] || die "no input given
$usage"
[[ $1 != -h && $1 != --help ]] || { echo "$usage"; exit 0; }
[[ -n ${SLURM_JOB_ID:-} ]] || die "not inside a SLURM job
$usage
without SLURM: loopmdm prepare $*"

# sbatch runs a copy of this file from its spool folder: see find_repository in pretrain.sh.
find_repository() {
    local script candidate
    script=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p') || script=""
    [[ $script == /* ]] || script=${SLURM_SUBMIT_DIR:-$PWD}/$script
    for candidate in "${BASH_SOURCE[0]%/*}/.." "${script%%/prepare_data.sh*}/.." "${SLURM_SUBMIT_DIR:-$PWD}"; do
        if [[ -f $candidate/pretrain/cli.py ]]; then
            (cd "$candidate" && pwd)
            return
        fi
    done
    die "cannot find the repository: submit from inside it"
}
repository=$(find_repository)

python=$repository/.venv/bin/python
if [[ ! -x $python ]]; then
    python=python3
    python3 -c 'import importlib.util as u, sys; sys.exit(u.find_spec("numpy") is None)' 2>/dev/null ||
        die "$repository/.venv is missing, and python3 has no numpy: install the project first
    cd $repository && python3 -m venv .venv && .venv/bin/pip install -e ."
fi

# One process per allocated CPU, unless the caller says otherwise.
workers=(--workers "${SLURM_CPUS_PER_TASK:-1}")
for argument in "$@"; do
    [[ $argument != --workers && $argument != --workers=* ]] || workers=()
done

export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# srun does not take the number of CPUs over from the job.
exec srun --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    "$python" -m pretrain.cli prepare "$@" "${workers[@]}"
