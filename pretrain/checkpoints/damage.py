"""The error of a checkpoint that is not what was written."""

from pathlib import Path

from pretrain.errors import UserError


class DamagedCheckpointError(UserError):
    """A file of a checkpoint is missing, truncated or changed.

    Args:
        checkpoint: its folder.
        problem: which file, and what is wrong with it.
    """

    def __init__(self, checkpoint: Path, problem: str) -> None:
        self.checkpoint, self.problem = checkpoint, problem
        super().__init__(f"{checkpoint}: {problem}; remove the folder to use the previous checkpoint")
