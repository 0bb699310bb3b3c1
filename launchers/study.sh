#!/usr/bin/env bash
# A study under SLURM (pretrain/studies/README.md), one job per training:
#
#   bash launchers/study.sh NAME --scale cluster [options of loopmdm study] [key=value ...]
#
# submits a job that prepares the data, an array that tunes the learning rates, an array with the other seeds, and a job that writes
# the page. Options of sbatch are given as environment variables (SBATCH_PARTITION=gpu, SBATCH_GPUS_PER_NODE=8, SBATCH_TIMELIMIT=1-0;
# see man sbatch), the CPUs of each job as STUDY_CPUS, and the largest number of jobs at the same time as STUDY_JOBS. Run the same
# command again to continue after a time limit or an error: trainings that are done cost nothing.
#
#SBATCH --job-name=loopmdm-study
#SBATCH --nodes=1
#SBATCH --ntasks=1
# In the folder of submission. If the log's folder did not exist, the job would end without any log.
#SBATCH --output=slurm-%A_%a.out
#SBATCH --open-mode=append
# Trainings save when the signal comes.
#SBATCH --signal=TERM@180
set -euo pipefail

die() { echo "study.sh: $*" >&2; exit 2; }

usage="usage: bash launchers/study.sh NAME [options of loopmdm study] [key=value ...]"
[[ $# -gt 0 ]] || die "no study given
$usage"
[[ $1 != -h && $1 != --help ]] || { echo "$usage"; exit 0; }
[[ $1 != -* && $1 != *=* ]] || die "expected a study, found '$1'
$usage"

submit() {
    command -v sbatch >/dev/null || die "no sbatch on this machine; without SLURM: loopmdm study $*"
    source "$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/slurm_job.sh"
    local options=(--parsable --kill-on-invalid-dep=yes ${STUDY_CPUS:+--cpus-per-task="$STUDY_CPUS"}) limit=${STUDY_JOBS:+%$STUDY_JOBS}
    local counts tuning seeds job
    counts=$("$(find_python numpy)" -m pretrain.cli study "$@" --count)
    read -r tuning seeds <<<"$counts"
    job=$(sbatch "${options[@]}" "${BASH_SOURCE[0]}" "$@" --units)
    echo "data: job ${job%%;*}"
    job=$(sbatch "${options[@]}" --array="0-$((tuning - 1))$limit" --dependency="afterok:${job%%;*}" "${BASH_SOURCE[0]}" "$@")
    echo "learning rates: job ${job%%;*}, an array of $tuning"
    if ((seeds > 0)); then
        job=$(sbatch "${options[@]}" --array="$tuning-$((tuning + seeds - 1))$limit" --dependency="afterok:${job%%;*}" "${BASH_SOURCE[0]}" "$@")
        echo "seeds: job ${job%%;*}, an array of $seeds"
    fi
    job=$(sbatch "${options[@]}" --dependency="afterok:${job%%;*}" "${BASH_SOURCE[0]}" "$@")
    echo "page: job ${job%%;*}"
}

if [[ -z ${SLURM_JOB_ID:-} ]]; then
    submit "$@"
    exit
fi

# As in prepare_data.sh: sbatch runs a copy of this file, whose path does not lead to the repository.
original=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p') || original=""
[[ $original == /* ]] || original=${SLURM_SUBMIT_DIR:-$PWD}/$original
for folder in "${BASH_SOURCE[0]%/*}" "${original%%/study.sh*}" "${SLURM_SUBMIT_DIR:-$PWD}/launchers" ""; do
    [[ ! -f $folder/slurm_job.sh ]] || break
done
[[ -n $folder ]] || die "cannot find the repository: submit from inside it"
source "$folder/slurm_job.sh"

exec srun --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    "$(find_python torch)" -m pretrain.cli study "$@" ${SLURM_ARRAY_TASK_ID:+--unit "$SLURM_ARRAY_TASK_ID"}
