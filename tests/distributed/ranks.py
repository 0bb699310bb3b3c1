"""Trains several layouts one after the other in the same ranks: starting ranks is what costs. Texts are drawn in few steps.

torchrun --nproc-per-node=N tests/distributed/ranks.py RECIPE LAYOUT.json: a file with a list of lists of key=value overrides.
"""

import gc
import json
import sys
from pathlib import Path

from data_pipeline.dataset.blend import load_blend
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from pretrain.machine.library_warnings import filter_library_warnings
from pretrain.parallel.launcher import read_launcher
from tests.launching import shape_of

if __name__ == "__main__":
    filter_library_warnings()
    from pretrain.parallel.world import leave_world
    from pretrain.training.hooks import texts
    from pretrain.training.start import run_training

    texts.DENOISING_STEPS = 6  # at 32, a text takes as long as six steps of training
    gc.freeze()  # DeepSpeed collects garbage for each ZeRO-3 engine: not among the libraries' objects, which is slow
    for overrides in sorted(json.loads(Path(sys.argv[2]).read_text()), key=shape_of):
        settings = load_settings(sys.argv[1], overrides)
        blend = load_blend(settings.data.path)
        run_training(make_run_plan(settings, blend.manifest, read_launcher()[1]), blend, resume=True)
    leave_world()
