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

# Ranks per node: as requested, else one per accelerator, else one.
# salloc does not set SLURM_GPUS_ON_NODE. SLURM_GPUS_PER_NODE has the form [type:]number.
nodes=$SLURM_JOB_NUM_NODES
gpus=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}}
gpus=${gpus##*:}
tasks=${SLURM_NTASKS_PER_NODE:-$((${SLURM_NTASKS:-0} / nodes))}
ranks=${LOOPMDM_RANKS_PER_NODE:-$((tasks > 0 ? tasks : gpus > 0 ? gpus : 1))}

# SLURM_JOB_CPUS_PER_NODE has a form such as 64(x4) or 64,32; use the number of the first node.
cpus=${SLURM_JOB_CPUS_PER_NODE%%[^0-9]*}
((ranks <= cpus)) || die "$ranks ranks on a node with $cpus allocated CPUs; request more CPUs (--exclusive, --cpus-per-gpu)"
cpus_per_rank=${SLURM_CPUS_PER_TASK:-$((cpus / ranks))}
# --cpus-per-task may be meant for the job's single batch task and be too large for each rank.
((cpus_per_rank * ranks <= cpus)) || cpus_per_rank=$((cpus / ranks))
# srun also reads these variables, and they would contradict its options below.
unset SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE SLURM_CPUS_PER_TASK SLURM_CPUS_PER_GPU SLURM_GPUS
# With --exclusive the job has all accelerators, but a job step has only those that it requests.
accelerators=()
((gpus == 0)) || accelerators=(--gpus-per-node="$gpus")

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
# Below the ephemeral port range, and different for consecutive jobs on one node.
MASTER_PORT=$((15000 + SLURM_JOB_ID % 15000))
OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus_per_rank}
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS

echo "job $SLURM_JOB_ID: $nodes nodes x $ranks ranks x $cpus_per_rank CPUs, rendezvous $MASTER_ADDR:$MASTER_PORT"

# Seconds that the other ranks have to end after the first one ended (SLURM's own variable). Killing them at once could
# interrupt a save, and would hide the exit code of an error that all ranks report.
export SLURM_WAIT=${SLURM_WAIT:-120}

# exec in the shell of each rank: signals to the ranks reach Python directly, without a shell in between.
status=0
srun --nodes="$nodes" --ntasks=$((nodes * ranks)) --ntasks-per-node="$ranks" --cpus-per-task="$cpus_per_rank" \
    "${accelerators[@]}" --kill-on-bad-exit=0 \
    bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS; exec "$@"' rank \
    "$python" "$repository/pretrain/main.py" --config "$@" || status=$?

# 75: all ranks have taken at least one step, saved, and want to be started again. `scancel JOB` ends the job for good;
# `scancel --signal=TERM JOB` lets it save first, and it waits in the queue again, unless it was submitted with --no-requeue.
if ((status == 75)) && [[ $(scontrol show job "$SLURM_JOB_ID") == *JobState=RUNNING*BatchFlag=1* ]]; then
    echo "job $SLURM_JOB_ID: stopped before the end of the run; back into the queue"
    scontrol requeue "$SLURM_JOB_ID" || echo "pretrain.sh: SLURM does not requeue this job; submit it again to go on" >&2
fi
exit "$status"  # srun's: the highest of all ranks
