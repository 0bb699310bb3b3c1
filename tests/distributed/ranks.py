"""Trains several layouts one after the other in the same ranks: starting ranks is what costs.

torchrun --nproc-per-node=N tests/distributed/ranks.py RECIPE LAYOUT.json: a file with a list of lists of key=value words.
"""

import json
import sys
from pathlib import Path

from data_pipeline.serving.blend import load_blend
from pretrain.configuring import load_settings
from pretrain.derive import make_plan
from pretrain.launcher import read_launcher
from pretrain.quiet import quiet_libraries

if __name__ == "__main__":
    quiet_libraries()
    from pretrain.running import run_training
    from pretrain.world import leave_world

    for words in json.loads(Path(sys.argv[2]).read_text()):
        settings = load_settings(sys.argv[1], words)
        blend = load_blend(settings.data.path)
        run_training(make_plan(settings, blend.manifest, read_launcher()[1]), blend, resume=True)
    leave_world()
