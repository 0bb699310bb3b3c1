#!/usr/bin/env bash
# Pre-training under SLURM, one process per accelerator:
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
# Whole nodes: all their accelerators and CPUs, none where there is no accelerator. A share of a node:
# --oversubscribe --gpus-per-node 2 --cpus-per-gpu 8
#SBATCH --exclusive
# SIGTERM reaches the ranks (not this script) 180 s before the time limit: they save and end.
#SBATCH --signal=TERM@180
# In the folder of the submission. A folder that does not exist would end the job without any log.
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
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

# sbatch runs a copy of this file from its spool folder, so its place says nothing there; the job's Command is the original
# path (relative to the submission if it was given so), then the arguments. Last, for `sbatch < FILE`, the submission's folder.
original=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p') || original=""
[[ $original == /* ]] || original=${SLURM_SUBMIT_DIR:-$PWD}/$original
for folder in "${BASH_SOURCE[0]%/*}" "${original%%/pretrain.sh*}" "${SLURM_SUBMIT_DIR:-$PWD}/launchers" ""; do
    [[ ! -f $folder/slurm_job.sh ]] || break
done
[[ -n $folder ]] || die "cannot find the repository: submit from inside it"
source "$folder/slurm_job.sh"
python=$(find_python torch)

# Ranks on each node: what was asked for, else the accelerators of the node, else one.
# salloc leaves SLURM_GPUS_ON_NODE out; SLURM_GPUS_PER_NODE reads [type:]number.
nodes=$SLURM_JOB_NUM_NODES
gpus=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}}
gpus=${gpus##*:}
tasks=${SLURM_NTASKS_PER_NODE:-$((${SLURM_NTASKS:-0} / nodes))}
ranks=${LOOPMDM_RANKS_PER_NODE:-$((tasks > 0 ? tasks : gpus > 0 ? gpus : 1))}

# SLURM_JOB_CPUS_PER_NODE reads 64(x4) or 64,32: the first node speaks for all.
cpus=${SLURM_JOB_CPUS_PER_NODE%%[^0-9]*}
((ranks <= cpus)) || die "$ranks ranks on a node with $cpus allocated CPUs: ask for more (--exclusive, --cpus-per-gpu)"
cpus_per_rank=${SLURM_CPUS_PER_TASK:-$((cpus / ranks))}
# A --cpus-per-task meant for the job's single batch task may be more than each rank can have.
((cpus_per_rank * ranks <= cpus)) || cpus_per_rank=$((cpus / ranks))
# srun reads these too, and would contradict the numbers it gets below.
unset SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE SLURM_CPUS_PER_TASK SLURM_CPUS_PER_GPU SLURM_GPUS
# --exclusive gives the job all accelerators, but a step only gets those that it asks for.
accelerators=()
((gpus == 0)) || accelerators=(--gpus-per-node="$gpus")

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
# Below the range that systems hand out to clients, and different for neighbouring jobs on one node.
MASTER_PORT=$((15000 + SLURM_JOB_ID % 15000))
OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus_per_rank}
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS

echo "job $SLURM_JOB_ID: $nodes nodes x $ranks ranks x $cpus_per_rank CPUs, rendezvous $MASTER_ADDR:$MASTER_PORT"

# When the first rank ends, the others have this many seconds to end too (SLURM's own variable). Killing them at
# once would cut off a save that others already finished, and would hide the exit code of an error that all share.
export SLURM_WAIT=${SLURM_WAIT:-120}

# exec twice: srun's exit code (the highest of the ranks') is the job's, and a signal meets Python without a
# shell in between.
exec srun --nodes="$nodes" --ntasks=$((nodes * ranks)) --ntasks-per-node="$ranks" --cpus-per-task="$cpus_per_rank" \
    "${accelerators[@]}" --kill-on-bad-exit=0 \
    bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS; exec "$@"' rank \
    "$python" "$repository/pretrain/main.py" --config "$@"
