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

# sbatch runs a copy of this file from its spool folder, so its place says nothing there; the job's Command is the original
# path (relative to the submission if it was given so), then the arguments. Last, for `sbatch < FILE`, the submission's folder.
original=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p') || original=""
[[ $original == /* ]] || original=${SLURM_SUBMIT_DIR:-$PWD}/$original
for folder in "${BASH_SOURCE[0]%/*}" "${original%%/prepare_data.sh*}" "${SLURM_SUBMIT_DIR:-$PWD}/launchers" ""; do
    [[ ! -f $folder/slurm_job.sh ]] || break
done
[[ -n $folder ]] || die "cannot find the repository: submit from inside it"
source "$folder/slurm_job.sh"
python=$(find_python numpy)

# One process per allocated CPU, unless the caller says otherwise.
workers=(--workers "${SLURM_CPUS_PER_TASK:-1}")
for argument in "$@"; do
    [[ $argument != --workers && $argument != --workers=* ]] || workers=()
done

# srun does not take the number of CPUs over from the job.
exec srun --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    "$python" -m pretrain.cli prepare "$@" "${workers[@]}"
