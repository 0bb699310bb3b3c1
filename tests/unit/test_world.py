"""Process groups of one process."""

from pretrain.parallel.world import leave_world, start_world


def test_groups_can_be_left_and_joined_again(world):
    leave_world()
    again = start_world((0, 1, 0))
    assert (again.stage, again.tensor_rank, again.data_parallel_rank) == (0, 0, 0)
    assert again.sum([2.0]).tolist() == [2.0]
