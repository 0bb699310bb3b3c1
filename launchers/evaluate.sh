#!/usr/bin/env bash
# Evaluation under SLURM with one process per accelerator, which share the items (pretrain/evaluation/README.md):
#
#   sbatch [sbatch options] launchers/evaluate.sh RUN [options of loopmdm evaluate]
#   sbatch --gpus-per-node 8 launchers/evaluate.sh runs/mine --tasks gsm8k.jsonl --few-shot prompt.txt --answer-length 256
#
# or, inside an allocation (salloc):  bash launchers/evaluate.sh RUN [options of loopmdm evaluate]
#
# Options on the sbatch command line override the lines below.
#
#SBATCH --job-name=loopmdm-evaluate
#SBATCH --nodes=1
# In the folder of submission: with a folder that does not exist, the job would end without a log.
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
# After a preemption or the failure of a node the job waits in the queue again. Tasks go on with the items that are missing.
#SBATCH --requeue
set -euo pipefail

die() { echo "evaluate.sh: $*" >&2; exit 2; }

usage="usage: sbatch [sbatch options] launchers/evaluate.sh RUN [options of loopmdm evaluate]"
[[ $# -gt 0 ]] || die "no run given
$usage"
[[ $1 != -h && $1 != --help ]] || { echo "$usage"; exit 0; }
[[ $1 != -* ]] || die "expected a run folder, found '$1' (sbatch's own options go before the script)
$usage"
[[ -n ${SLURM_JOB_ID:-} ]] || die "not inside a SLURM job
$usage
without SLURM: torchrun --nproc-per-node=ACCELERATORS -m pretrain.cli evaluate $*"

# As in pretrain.sh: sbatch runs a copy of this file, whose path does not lead to the repository.
original=$(scontrol show job "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/^ *Command=//p') || original=""
[[ $original == /* ]] || original=${SLURM_SUBMIT_DIR:-$PWD}/$original
for folder in "${BASH_SOURCE[0]%/*}" "${original%%/evaluate.sh*}" "${SLURM_SUBMIT_DIR:-$PWD}/launchers" ""; do
    [[ ! -f $folder/slurm_job.sh ]] || break
done
[[ -n $folder ]] || die "cannot find the repository; submit from inside it"
source "$folder/slurm_job.sh"

python=$(find_python torch)
run_ranks "$python" -m pretrain.cli evaluate "$@"
