#!/usr/bin/env bash
# Pre-training under SLURM with one process per accelerator:
#
#   sbatch [sbatch options] launchers/pretrain.sh RECIPE [key=value ...]
#   sbatch -N 4 --gpus-per-node 8 launchers/pretrain.sh RECIPE
#
# or, inside an allocation (salloc):  bash launchers/pretrain.sh RECIPE [key=value ...]
#
# Options on the sbatch command line override the lines below.
#
#SBATCH --job-name=loopmdm-pretrain
#SBATCH --nodes=1
# Whole nodes, with all their accelerators and CPUs. For a part of a node: --oversubscribe --gpus-per-node 2 --cpus-per-gpu 8
#SBATCH --exclusive
# The ranks (not this script) receive SIGTERM 180 s before the time limit: they save a checkpoint and exit.
#SBATCH --signal=TERM@180
# In the folder of submission: with a folder that does not exist, the job would end without a log.
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
# After a preemption, the failure of a node, or the time limit (see the end), the job waits in the queue again and goes on.
#SBATCH --requeue
set -euo pipefail

die() { echo "pretrain.sh: $*" >&2; exit 2; }

usage="usage: sbatch [sbatch options] launchers/pretrain.sh RECIPE [key=value ...]"
[[ $# -gt 0 ]] || die "no recipe given
$usage"
[[ $1 != -h && $1 != --help ]] || { echo "$usage"; exit 0; }
[[ $1 != -* && $1 != *=* ]] || die "expected a recipe, found '$1' (sbatch's own options go before the script)
$usage"
[[ -n ${SLURM_JOB_ID:-} ]] || die "not inside a SLURM job
$usage
without SLURM: torchrun --nproc-per-node=ACCELERATORS pretrain/main.py --config $*"

# sbatch runs a copy of this file from its spool folder, so the path of the copy does not lead to the repository. The job's
# Command is the original path (possibly relative to the folder of submission), followed by the arguments. With `sbatch < FILE`
# there is none: the last guess is the folder of submission.
original=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p') || original=""
[[ $original == /* ]] || original=${SLURM_SUBMIT_DIR:-$PWD}/$original
for folder in "${BASH_SOURCE[0]%/*}" "${original%%/pretrain.sh*}" "${SLURM_SUBMIT_DIR:-$PWD}/launchers" ""; do
    [[ ! -f $folder/slurm_job.sh ]] || break
done
[[ -n $folder ]] || die "cannot find the repository; submit from inside it"
source "$folder/slurm_job.sh"
python=$(find_python torch)

status=0
run_ranks "$python" "$repository/pretrain/main.py" --config "$@" || status=$?

# 75: all ranks have taken at least one step, saved, and want to be started again. `scancel JOB` ends the job for good;
# `scancel --signal=TERM JOB` lets it save first, and it waits in the queue again, unless it was submitted with --no-requeue.
if ((status == 75)) && [[ $(scontrol show job "$SLURM_JOB_ID") == *JobState=RUNNING*BatchFlag=1* ]]; then
    echo "job $SLURM_JOB_ID: stopped before the end of the run; back into the queue"
    scontrol requeue "$SLURM_JOB_ID" || echo "pretrain.sh: SLURM does not requeue this job; submit it again to go on" >&2
fi
exit "$status"  # srun's: the highest of all ranks
