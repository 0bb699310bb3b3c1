# Functions for the other launchers inside a SLURM job; they source this file from the repository's launchers/.
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

# Run "$@" as one process per accelerator of the job, on all its nodes; returns srun's status, the highest of all ranks.
run_ranks() {
    # Ranks per node: as requested, else one per accelerator, else one.
    # salloc does not set SLURM_GPUS_ON_NODE. SLURM_GPUS_PER_NODE has the form [type:]number.
    local nodes=$SLURM_JOB_NUM_NODES gpus=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}}
    gpus=${gpus##*:}
    local tasks=${SLURM_NTASKS_PER_NODE:-$((${SLURM_NTASKS:-0} / nodes))}
    local ranks=${LOOPMDM_RANKS_PER_NODE:-$((tasks > 0 ? tasks : gpus > 0 ? gpus : 1))}

    # SLURM_JOB_CPUS_PER_NODE has a form such as 64(x4) or 64,32; use the number of the first node.
    local cpus=${SLURM_JOB_CPUS_PER_NODE%%[^0-9]*}
    ((ranks <= cpus)) || die "$ranks ranks on a node with $cpus allocated CPUs; request more CPUs (--exclusive, --cpus-per-gpu)"
    local cpus_per_rank=${SLURM_CPUS_PER_TASK:-$((cpus / ranks))}
    # --cpus-per-task may be meant for the job's single batch task and be too large for each rank.
    ((cpus_per_rank * ranks <= cpus)) || cpus_per_rank=$((cpus / ranks))
    # srun also reads these variables, and they would contradict its options below.
    unset SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE SLURM_CPUS_PER_TASK SLURM_CPUS_PER_GPU SLURM_GPUS
    # With --exclusive the job has all accelerators, but a job step has only those that it requests.
    local accelerators=()
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
    srun --nodes="$nodes" --ntasks=$((nodes * ranks)) --ntasks-per-node="$ranks" --cpus-per-task="$cpus_per_rank" \
        "${accelerators[@]}" --kill-on-bad-exit=0 \
        bash -c 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS; exec "$@"' rank "$@"
}
