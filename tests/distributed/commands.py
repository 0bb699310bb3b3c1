"""Runs several commands one after the other in the same ranks: torchrun ... commands.py COMMANDS.json (lists of words)."""

import json
import sys
from pathlib import Path

from pretrain.cli import main

if __name__ == "__main__":
    statuses = [main(words) for words in json.loads(Path(sys.argv[1]).read_text())]
    from pretrain.parallel.world import leave_world

    leave_world()
    sys.exit(max(statuses))
