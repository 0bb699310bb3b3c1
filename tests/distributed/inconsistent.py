"""Starts a run in which one rank differs: torchrun ... inconsistent.py RECIPE RANK DIFFERENCE key=value ...

DIFFERENCE: `weights` or `rows` changes what that rank computes; anything else is one more key=value override for it.
"""

import sys
from collections.abc import Callable

from torch import Size, Tensor

from data_pipeline.dataset.blend import load_blend
from pretrain.config.load import load_settings
from pretrain.config.run_plan import make_run_plan
from pretrain.errors import UserError
from pretrain.machine.library_warnings import filter_library_warnings
from pretrain.parallel.launcher import read_launcher
from pretrain.training.stop_request import end_process

STOPPED = 3
"""Exit status of a rank that stopped as expected."""


def change_weights() -> None:
    """This process draws one weight that is slightly off."""
    original = denoiser.initial_weights

    def changed(*arguments: object) -> Callable[[str, Size], Tensor]:
        draw = original(*arguments)
        return lambda name, shape: draw(name, shape) + 1e-6 * (name == "mid.layers.0.mlp.linear_fc1.weight")

    denoiser.initial_weights = changed


def change_rows() -> None:
    """This process shuffles the rows with another seed."""
    order = samples.SampleOrder
    samples.SampleOrder = lambda seed, rows: order(seed + 1, rows)


if __name__ == "__main__":
    filter_library_warnings()
    from data_pipeline.dataset import samples
    from model import denoiser
    from pretrain.training.start import run_training

    recipe, different, difference, *overrides = sys.argv[1:]
    ranks = read_launcher()
    if ranks[0] == int(different):
        changes = {"weights": change_weights, "rows": change_rows}
        if difference in changes:
            changes[difference]()
        else:
            overrides.append(difference)
    settings = load_settings(recipe, overrides)
    blend = load_blend(settings.data.path)
    try:
        run_training(make_run_plan(settings, blend.manifest, ranks[1]), blend, resume=True)
    except UserError as error:
        print(f"rank {ranks[0]} stopped: {error}", flush=True)
        end_process(STOPPED)
    sys.exit("the ranks trained")
