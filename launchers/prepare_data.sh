#!/usr/bin/env bash
# Data preparation under SLURM, on CPUs only. One job:
#
#   sbatch [sbatch options] launchers/prepare_data.sh --input ... --output ... [options of loopmdm prepare]
#   sbatch --cpus-per-task 32 launchers/prepare_data.sh --input ... --output ...
#
# Many nodes: one job that trains the tokenizer, an array of N jobs that share the tasks, and one job that joins their shards when
# these have ended. The jobs of the array take one task after the other; if one is killed, the others do its tasks:
#
#   bash launchers/prepare_data.sh --array N --input ... --output ... [options of loopmdm prepare]
#
# Options of sbatch are then given as environment variables (SBATCH_PARTITION=cpu, SBATCH_TIMELIMIT=1-0; see man sbatch), and
# the CPUs of each job as PREPARE_CPUS. If the last job fails, run the same command again to continue from the finished tasks. Any
# job may be requeued, also while others are running.
#
# Options on the sbatch command line override the lines below.
#
#SBATCH --job-name=loopmdm-prepare
#SBATCH --nodes=1
#SBATCH --ntasks=1
# In the folder of submission. If the log's folder did not exist, the job would end without any log.
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
set -euo pipefail

die() { echo "prepare_data.sh: $*" >&2; exit 2; }

usage="usage: sbatch [sbatch options] launchers/prepare_data.sh --input ... --output ... [options of loopmdm prepare]
       bash launchers/prepare_data.sh --array N --input ... --output ... [options of loopmdm prepare]"
[[ $# -gt 0 ]] || die "no input given
$usage"
[[ $1 != -h && $1 != --help ]] || { echo "$usage"; exit 0; }

# For --array N: submit the three phases, each of which starts after the one before.
submit() {
    local count=$1 job
    shift
    [[ $count =~ ^[1-9][0-9]*$ ]] || die "--array $count: give the number of jobs that share the tasks"
    command -v sbatch >/dev/null || die "no sbatch on this machine; without SLURM: loopmdm prepare $*"
    local options=(--parsable --kill-on-invalid-dep=yes ${PREPARE_CPUS:+--cpus-per-task="$PREPARE_CPUS"})
    job=$(sbatch "${options[@]}" "${BASH_SOURCE[0]}" "$@" --stage start)
    echo "start: job ${job%%;*}"
    job=$(sbatch "${options[@]}" --array="0-$((count - 1))" --dependency="afterok:${job%%;*}" "${BASH_SOURCE[0]}" "$@" --stage tokens)
    echo "tokens: job ${job%%;*}, an array of $count"
    # afterany: when a job of the array was killed, the others have done its tasks. If tasks are missing, join says so.
    job=$(sbatch "${options[@]}" --dependency="afterany:${job%%;*}" "${BASH_SOURCE[0]}" "$@" --stage join)
    echo "join: job ${job%%;*}"
}

if [[ $1 == --array ]]; then
    [[ -z ${SLURM_JOB_ID:-} ]] || die "--array submits jobs: run it with bash, outside a SLURM job"
    [[ $# -gt 2 ]] || die "$usage"
    submit "${@:2}"
    exit
fi
[[ -n ${SLURM_JOB_ID:-} ]] || die "not inside a SLURM job
$usage
without SLURM: loopmdm prepare $*"

# sbatch runs a copy of this file from its spool folder, so the path of the copy does not help. The job's Command has the original
# path (relative to the folder of submission if it was given so) and the arguments. For `sbatch < FILE`, try that folder too.
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

# Each job of an array begins at another task.
share=()
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    share=(--task-index "$((SLURM_ARRAY_TASK_ID - ${SLURM_ARRAY_TASK_MIN:-0}))" --task-count "$SLURM_ARRAY_TASK_COUNT")
    [[ " $* " == *" --stage "* ]] || share+=(--stage tokens)
fi

# srun does not inherit the number of CPUs from the job.
exec srun --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    "$python" -m pretrain.cli prepare "$@" "${workers[@]}" "${share[@]}"
