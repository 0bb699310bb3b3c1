"""Steps at once, and the same with a checkpoint in the middle: the losses and the final weights must be equal bit for bit.

On rows of 1,024 with `train.deterministic`: without it, the backward pass of flash attention adds in the order in which blocks of
keys end, of which rows of 128 have one.
"""

from collections.abc import Sequence
from pathlib import Path

from pretrain.training.start import run_training
from tests.checkpoints import weights_of
from tests.gpu.harness import Check
from tests.gpu.runs import deviation, plan_of, read_records, release, weight_deviation
from tests.gpu.zero_stages import words_of

CASES = [("bf16", 1, 128), ("fp32", 0, 128), ("bf16", 2, 128), ("bf16", 3, 128), ("bf16", 1, 1024)]
"""(precision, ZeRO stage, tokens in a row); the first one also runs under --quick."""


def check_resume(check: Check) -> None:
    """Every case. If the resumed run differs, a second run at once shows whether the device repeats its own numbers."""
    for precision, stage, row in CASES[: 1 if check.quick else None]:
        with check.part(f"{precision} ZeRO-{stage}, rows of {row}") as figures:
            count = 6 if check.quick or row > 128 else 20
            words = [
                *words_of(check), f"train.precision={precision}", f"parallel.zero_stage={stage}", f"train.steps={count}",
                "eval.every=null", "log.tensorboard=false", "checkpoint.every=null",
            ]  # fmt: skip
            if row > 128:
                words += [f"data.path={check.scratch / 'data' / 'large'}", "train.deterministic=true"]
            name = f"{precision}_zero{stage}_{row}"
            whole = train_here(check, f"{name}_whole", words)
            train_here(check, f"{name}_resumed", [*words, f"run.stop_after={count // 2}"])
            resumed = train_here(check, f"{name}_resumed", words)
            losses, weights = difference(whole, resumed)
            figures.update({"losses": losses, "weights": weights})
            if losses or weights:
                again = difference(whole, train_here(check, f"{name}_again", words))
                figures.update({"losses of a second run": again[0], "weights of a second run": again[1]})
                repeats = "repeats" if again == (0.0, 0.0) else "does not repeat"
                check.expect(False, f"the resumed run differs; the device {repeats} a run without a stop")


def train_here(check: Check, name: str, words: Sequence[str]) -> Path:
    """One start of the training command in this process; returns the run folder."""
    release()
    plan, blend = plan_of([*words, f"run.dir={check.scratch / 'runs'}", f"run.name={name}"])
    status = run_training(plan, blend, resume=True)
    if status:
        raise RuntimeError(f"{name}: status {status}")
    return plan.settings.run_folder


def difference(one: Path, other: Path) -> tuple[float, float]:
    """Largest relative deviation of the losses and of the final weights; 0 if all bits are equal."""
    losses = [[record["loss"] for record in read_records(folder)] for folder in (one, other)]
    weights = []
    for folder in (one, other):
        last = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name.removeprefix("step_")))
        weights.append(weights_of(last))
    return deviation(losses[1], losses[0]), weight_deviation(weights[1], weights[0])
