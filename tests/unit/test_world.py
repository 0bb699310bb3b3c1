"""Process groups of one process."""

from types import SimpleNamespace

import pytest
import torch

from pretrain.errors import UserError
from pretrain.parallel.engine import _import_deepspeed
from pretrain.parallel.world import leave_world, start_world


def test_groups_can_be_left_and_joined_again(world):
    leave_world()
    again = start_world((0, 1, 0))
    assert (again.stage, again.tensor_rank, again.data_parallel_rank) == (0, 0, 0)
    assert again.sum([2.0]).tolist() == [2.0]


def test_another_accelerator_of_deepspeed_is_refused(monkeypatch):
    """DeepSpeed would look for a device that this process does not use, and fail with a traceback."""
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    with pytest.raises(
        UserError, match=r"^DS_ACCELERATOR=cuda is set, but this run is on cpu, .*env -u DS_ACCELERATOR"
    ):
        _import_deepspeed(SimpleNamespace(device=torch.device("cpu")))
