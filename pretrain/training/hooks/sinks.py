"""Where figures go: the console, metrics.jsonl, TensorBoard."""

import json
from textwrap import indent

from data_pipeline.atomic_files import write_atomic
from data_pipeline.json_text import json_text, lines_of
from pretrain.config.run_folder import record_of
from pretrain.durations import format_duration
from pretrain.evaluation.report import short_figures
from pretrain.training.hooks.patient_file import PatientFile
from pretrain.training.hooks.recorder import Record, Sink
from pretrain.training.state import TrainingRun

SHOWN = 120
"""Characters of a text on the console."""


class Console(Sink):
    """One line per record, in a fixed order, with units."""

    def open(self, run: TrainingRun) -> None:
        """Note the total number of steps."""
        self._total = run.plan.total_steps

    def write_training(self, record: Record) -> None:
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

    def write_validation(self, record: Record) -> None:
        """Print the figures of every S in one line."""
        figures = record["validation"]
        name = f" of {figures['name']}" if figures["name"] else ""
        print(
            f"validation{name} at step {record['step']} ({figures['weights']} weights), nats/token: {short_figures(figures)}",
            flush=True,
        )

    def write_texts(self, record: Record) -> None:
        """Print the beginning of the first text in one line."""
        texts = record["texts"]
        beginning = json.dumps(texts["drawn"][0][:SHOWN], ensure_ascii=False)
        print(
            f"text at step {record['step']} ({texts['weights']} weights, S={texts['loops']}): {beginning}", flush=True
        )


class MetricsFile(Sink):
    """`metrics.jsonl`: one JSON object per line and record, for readers at once."""

    def open(self, run: TrainingRun) -> None:
        """Keep the lines up to the step at which this start begins; later ones will be written again."""
        path = run.folder / "metrics.jsonl"
        if path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            write_atomic(path, "".join(_lines_until(text, run.progress.step)))
        self._file = PatientFile(path, "ab")

    def write_training(self, record: Record) -> None:
        """Append the record."""
        self._file.write((json_text(record) + "\n").encode())

    write_validation = write_texts = write_training

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard(Sink):
    """`tensorboard/`: every number of the record as a scalar."""

    def open(self, run: TrainingRun) -> None:
        """Begin an event file. TensorBoard hides the earlier values of steps that will be taken again."""
        from pretrain.training.hooks.event_file import EventFile

        self._file = EventFile(run.folder / "tensorboard", first_step=run.progress.step + 1)

    def write_training(self, record: Record) -> None:
        """Write scalars under `train/`, `loss_by_timestep/`, `loss_by_loops/`, `grad_norm_by_part/` and `update_ratio_by_part/`."""
        self._file.write(record["step"], training_scalars(record))

    def write_validation(self, record: Record) -> None:
        """Write the nats per token of every S under `validation_nats_per_token/`."""
        self._file.write(record["step"], validation_scalars(record))

    def write_texts(self, record: Record) -> None:
        """Write texts under `texts/`."""
        for number, text in enumerate(record["texts"]["drawn"], 1):
            self._file.write_text(record["step"], f"texts/{number}", as_markdown(text))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def training_scalars(record: Record) -> dict[str, float]:
    """The numbers of a training record, by tag."""
    bins = record["loss_by_timestep"]
    scalars = {f"train/{k}": v for k, v in record.items() if isinstance(v, int | float) and k != "step"}
    scalars |= {
        f"{figure}_by_part/{part}": value
        for part, figures in record.get("parts", {}).items()
        for figure, value in figures.items()
    }
    scalars |= {f"loss_by_timestep/{i / len(bins):.1f}": v for i, v in enumerate(bins) if v is not None}
    return scalars | {f"loss_by_loops/{loops}": v for loops, v in record["loss_by_loops"].items()}


def validation_scalars(record: Record) -> dict[str, float]:
    """The nats per token of every S, by tag."""
    figures = record["validation"]
    tag = f"validation_nats_per_token{figures['name'] and '_' + figures['name']}"
    return {f"{tag}/loops_{f['loops']}": f["nats_per_token"] for f in figures["loops"]}


def as_markdown(text: str) -> str:
    """A text as Markdown that shows it as it is: indented lines."""
    return indent(text, "    ", lambda line: True)


def _lines_until(text: str, step: int) -> list[str]:
    """The complete lines of steps up to `step`; a line that a crash has spoilt is dropped."""
    whole = lines_of(text[: text.rfind("\n") + 1])
    return [line + "\n" for line in whole if (record := record_of(line)) and record["step"] <= step]
