"""Where figures go: the console, metrics.jsonl, TensorBoard."""

import json
from collections.abc import Mapping

from data_pipeline.atomic_files import write_atomic
from pretrain.training.hooks.metrics import Record
from pretrain.training.loop import TrainingRun


class Console:
    """One line per record, in a fixed order, with units."""

    def open(self, run: TrainingRun) -> None:
        """Remember what the line is measured against."""
        self._total, self._ranks = run.plan.total_steps, run.world.size

    def write(self, record: Record) -> None:
        """Print the line."""
        step, mfu = record["step"], record["mfu"]
        parts = [
            f"step {step:>{len(str(self._total))}}/{self._total}",
            f"loss {record['loss']:.4f} nats/token",
            f"loops {record['loops']:.3g}",
            f"grad_norm {record['grad_norm']:.3f}",
            f"lr {record['lr']:.2e}",
            f"{record['tokens_per_second']:,.0f} tokens/s",
            f"{record['flops_per_second'] / 1e12:.3g} TFLOP/s",
            f"mfu {'n/a' if mfu is None else format(mfu, '.1%')}",
            f"memory {record['memory_gib']:.2f} GiB",
            f"data wait {record['data_wait']:.1%}",
            f"eta {format_duration(record['eta'])}",
        ]
        print(" | ".join(parts), flush=True)

    def close(self) -> None:
        """Nothing to close."""


class MetricsFile:
    """`metrics.jsonl`: one JSON object per record, flushed line by line."""

    def open(self, run: TrainingRun) -> None:
        """Keep the lines up to the step this start begins at; later ones will be written again."""
        path = run.folder / "metrics.jsonl"
        if path.exists():
            write_atomic(path, "".join(_lines_until(path.read_text(encoding="utf-8"), run.progress.step)))
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append the record."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """`tensorboard/`: every number of the record as a scalar."""

    def open(self, run: TrainingRun) -> None:
        """Open the writer; a resumed run hides the steps that will be taken again."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(run.folder / "tensorboard", purge_step=run.progress.step + 1)

    def write(self, record: Record) -> None:
        """Write scalars under `train/`, `loss_by_timestep/` and `loss_by_loops/`."""
        bins = record["loss_by_timestep"]
        scalars = {f"train/{k}": v for k, v in record.items() if isinstance(v, int | float) and k != "step"}
        scalars |= {f"loss_by_timestep/{i / len(bins):.1f}": v for i, v in enumerate(bins) if v is not None}
        scalars |= {f"loss_by_loops/{loops}": v for loops, v in record["loss_by_loops"].items()}
        self.write_scalars(record["step"], scalars)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write values under names of the caller's."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the writer."""
        self._writer.close()


def format_duration(seconds: float) -> str:
    """`45s`, `3m05s`, `2h07m`, `4d03h`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 1:
        return f"{minutes}m{rest:02d}s"
    days, hours = divmod(hours, 24)
    return f"{hours}h{minutes:02d}m" if days < 1 else f"{days}d{hours:02d}h"


def _lines_until(text: str, step: int) -> list[str]:
    """Whole lines of steps up to `step`; a line cut short by a crash is dropped."""
    kept = []
    for line in text.splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue
    return kept
