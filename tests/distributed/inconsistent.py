"""Starts a run in which one rank differs: torchrun ... inconsistent.py RECIPE RANK DIFFERENCE key=value ...

DIFFERENCE: `weights` or `rows` spoils what that rank computes; anything else is one more key=value word for it.
"""

import sys

from data_pipeline.dataset.blend import load_blend
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from pretrain.errors import UserError
from pretrain.machine.library_warnings import filter_library_warnings
from pretrain.parallel.launcher import read_launcher
from pretrain.training.stop_request import end_process

STOPPED = 3
"""Exit status of a rank that stopped as it should."""

if __name__ == "__main__":
    filter_library_warnings()
    from data_pipeline.dataset import samples
    from pretrain.parallel import parallelize
    from pretrain.training import start

    recipe, different, difference, *words = sys.argv[1:]
    ranks = read_launcher()
    if ranks[0] == int(different):
        if difference == "weights":
            build = parallelize.LoopedDenoiser

            def altered(*arguments):
                model = build(*arguments)
                model.mid.layers["0"].mlp.linear_fc1.weight.data[0, 0] += 1e-6
                return model

            parallelize.LoopedDenoiser = altered
        elif difference == "rows":
            order = samples.SampleOrder
            samples.SampleOrder = lambda seed, rows: order(seed + 1, rows)
        else:
            words.append(difference)
    settings = load_settings(recipe, words)
    blend = load_blend(settings.data.path)
    try:
        start.run_training(make_run_plan(settings, blend.manifest, ranks[1]), blend, resume=True)
    except UserError as error:
        print(f"rank {ranks[0]} stopped: {error}", flush=True)
        end_process(STOPPED)
    sys.exit("the ranks trained")
