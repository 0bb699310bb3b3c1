"""Figures for Weights & Biases and for trackio, through their own libraries, which are optional.

Both read their own environment variables: WANDB_MODE=offline, WANDB_ENTITY, TRACKIO_DIR and so on.
"""

import html
import json
import uuid
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

from data_pipeline.atomic_files import write_atomic
from pretrain.config.keys import flatten
from pretrain.errors import UserError
from pretrain.training.hooks.recorder import Record, Sink
from pretrain.training.hooks.sinks import as_markdown, training_scalars, validation_scalars
from pretrain.training.state import TrainingRun


class Tracker(Sink):
    """One run of a tracking service for all starts of a run.

    Services cannot take figures back. Steps that are taken again after a crash have the same numbers, so they are left out; after
    the run went back to a checkpoint they have others, and a new run of the service begins. The file `NAME.json` in the run
    folder has the service's id of the run and the last step that was sent.
    """

    name: str
    """Of the library, and of the setting `log.NAME`."""

    def open(self, run: TrainingRun) -> None:
        """Continue the service's run, or begin it."""
        self._path = run.folder / f"{self.name}.json"
        known = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        self._passed_over = run.progress.passed_over
        if known.get("passed_over") != self._passed_over:
            known = {}
        self._id, self._last = known.get("id", uuid.uuid4().hex[:12]), known.get("last_step", -1)
        self._library = _import(self.name)
        self._begin(self._library, run)
        self._waiting: tuple[int, dict[str, object]] | None = None

    def _begin(self, library: ModuleType, run: TrainingRun) -> None:
        raise NotImplementedError

    def write_training(self, record: Record) -> None:
        """Send the scalars of a training record with those of a validation of the same step."""
        self._write(record["step"], training_scalars(record))

    def write_validation(self, record: Record) -> None:
        """Send the nats per token of every S."""
        self._write(record["step"], validation_scalars(record))

    def write_texts(self, record: Record) -> None:
        """Send texts under `texts/`."""
        texts = enumerate(record["texts"]["drawn"], 1)
        self._write(record["step"], {f"texts/{number}": self._shown(self._library, text) for number, text in texts})

    def _shown(self, library: ModuleType, text: str) -> object:
        """A text as the service shows it."""
        raise NotImplementedError

    def _write(self, step: int, figures: Mapping[str, object]) -> None:
        """Keep the figures until those of another step come: a service takes a step once."""
        if self._waiting is not None and self._waiting[0] != step:
            self._send()
        if step > self._last:
            self._waiting = step, (self._waiting[1] if self._waiting else {}) | figures

    def _send(self) -> None:
        if self._waiting is None:
            return
        (step, figures), self._waiting = self._waiting, None
        self._library.log(figures, step=step)
        self._last = step
        write_atomic(
            self._path, json.dumps({"id": self._id, "last_step": step, "passed_over": self._passed_over}) + "\n"
        )

    def close(self) -> None:
        """Send what is left and end."""
        self._send()
        self._library.finish()


class WandB(Tracker):
    """`log.wandb`: Weights & Biases."""

    name = "wandb"

    def _begin(self, library: ModuleType, run: TrainingRun) -> None:
        settings = run.plan.settings
        library.init(
            project=settings.log.project, name=run.folder.name, id=self._id, resume="allow", dir=str(run.folder),
            config=_plain(settings),
        )  # fmt: skip

    def _shown(self, library: ModuleType, text: str) -> object:
        return library.Html(f"<pre>{html.escape(text)}</pre>", data_is_not_path=True)


class Trackio(Tracker):
    """`log.trackio`: trackio, whose files stay on this machine."""

    name = "trackio"

    def _begin(self, library: ModuleType, run: TrainingRun) -> None:
        settings = run.plan.settings
        name = f"{run.folder.name}-{self._id}"
        library.init(
            project=settings.log.project, name=name, resume="allow", config=_plain(settings), embed=False, auto_log_gpu=False,
            auto_log_cpu=False,
        )  # fmt: skip

    def _shown(self, library: ModuleType, text: str) -> object:
        return library.Markdown(as_markdown(text))


def _plain(settings: object) -> dict[str, object]:
    return {
        key: value if isinstance(value, int | float | bool) else str(value) for key, value in flatten(settings).items()
    }


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f'log.{name}=true: {error}; pip install "loopmdm[{name}]", or set log.{name}=false') from None
