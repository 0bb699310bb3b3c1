#!/usr/bin/env bash
# Does training work on this GPU, are its numbers right, and how fast is it? One GPU, no network, under 8 minutes:
#
#   bash tests/gpu/check.sh --output DIR                            everything
#   bash tests/gpu/check.sh --output DIR --checks start,oracle      some of the checks
#   bash tests/gpu/check.sh --output DIR --device cpu --quick       the checks themselves, on a CPU
#
# DIR gets results.json, results.md and log.txt, renewed after every part. A failed check does not stop the others; the status
# is 1 if any failed. The training data is made on the spot. Needs Python 3.11 or 3.12 with torch >= 2.11, deepspeed,
# megatron-core and the packages below: $PYTHON, else .venv/bin/python, else python3. On a machine without network, take the
# wheels that tests/gpu/bundle.sh collects.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

python=${PYTHON:-$repository/.venv/bin/python}
[[ -x $(command -v "$python") ]] || python=python3

missing=$("$python" - <<'EOF'
from importlib.util import find_spec

packages = {
    "torch": "torch", "deepspeed": "deepspeed", "megatron": "megatron-core", "numpy": "numpy", "pyarrow": "pyarrow",
    "pydantic": "pydantic", "yaml": "PyYAML", "safetensors": "safetensors", "tensorboard": "tensorboard", "tokenizers": "tokenizers",
}
print(" ".join(package for module, package in packages.items() if find_spec(module) is None))
EOF
)
if [[ -n $missing ]]; then
    echo "check.sh: $python lacks: $missing" >&2
    echo "With network: bash launchers/install.sh. Without: bash tests/gpu/bundle.sh where there is network, copy the folder," >&2
    echo "then pip install --no-index --no-deps FOLDER/wheels/*.whl" >&2
    exit 2
fi

export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
exec "$python" -m tests.gpu "$@"
