#!/usr/bin/env bash
# From a machine with Python 3.11 or 3.12 to a trained, evaluated and sampled model, on GPUs or, without them, on the CPU:
#
#   bash launchers/quickstart.sh [key=value ...]
#
# prepare -> train on 2 ranks -> evaluate -> sample -> summary. A second call reuses existing results. `key=value` overrides the
# recipe, such as train.steps=1800 for a better model in twice the time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash launchers/install.sh
# Child processes, such as the ranks started by the deepspeed launcher, must use the same environment.
export PATH="$PWD/.venv/bin:$PATH"

step() { printf '\n== %s\n' "$*"; }

step "1/4 prepare: the sources of Python's standard library -> data/stdlib"
loopmdm prepare --input stdlib: --output data/stdlib --vocab-size 2048 --seq-len 128 --validation-fraction 0.05

step "2/4 train: 2 ranks, ZeRO-1 -> runs/quickstart"
# DeepSpeed's fixed default would collide with any other job on the machine. Ports below 32768 are not given to connections.
port=$((15000 + RANDOM % 15000))
# Without a GPU, its launcher would print a warning about that in each of its processes.
python -c 'import sys, torch; sys.exit(torch.cuda.is_available())' && export DS_ACCELERATOR=cpu
deepspeed --num_gpus 2 --master_port "$port" --log_level error pretrain/main.py --config quickstart "$@"

step "3/4 evaluate: validation NELBO at several numbers of loops"
loopmdm evaluate runs/quickstart --loops 1,2,4,8

step "4/4 sample: text generated after a prompt"
loopmdm sample runs/quickstart --loops 4 --steps 64 --prompt "import os"

step "done"
cat <<'EOF'
runs/quickstart/   config.yaml  metrics.jsonl  tensorboard/  checkpoints/  eval/  samples/

next:
  source .venv/bin/activate
  tensorboard --logdir runs                                     plot the curves
  loopmdm sample runs/quickstart --loops 8 --prompt "class "    more loops, another prompt
  loopmdm prepare --input YOUR_TEXT --output data/mine --vocab-size 2048 --seq-len 128 --validation-fraction 0.05
  loopmdm train --config quickstart data.path=data/mine run.name=mine
  loopmdm train --help                                          all settings with their meaning
  loopmdm doctor                                                versions, device, kernels in use
EOF
