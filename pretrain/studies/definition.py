"""The definition of a study: a YAML file with a claim, arms, scales, measurements and a rule for the verdict. Imports no torch."""

import difflib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_pipeline.yaml_files import Section, Value, YamlError, read_yaml
from pretrain.errors import UserError
from pretrain.evaluation.compute_settings import parse_loops

DEFINITIONS = Path(__file__).parent / "definitions"
MAX_SEEDS = 10

DECIDED = {
    "optim.lr": "learning_rates in scales, which all arms share, or learning_rate_factor of an arm",
    "run.seed": "seeds in scales, or --seeds",
    "run.stop_after": "train.steps, or flops in scales",
    "run.time_limit": "train.steps, or flops in scales",
    "eval.every": "points in scales",
    "eval.loops": "curve, or loops in scales",
    "eval.rows": "rows in scales",
    "data.path": "data in scales, or data.path=FOLDER on the command line",
    "run.dir": "--output on the command line",
    "run.name": "nothing: run folders are named by their content",
}
"""Settings that neither a definition nor the command line can have -> what to give instead."""

Loops = tuple[str, ...]
"""Numbers of loops as `loopmdm evaluate --loops` takes them: `4`, `1-6-1`, `adaptive:1-12`."""

FigureName = Literal[
    "flops_to_tie", "seconds_to_tie", "nelbo_gain", "score_gain", "loops_spent", "attention_gain", "seconds_to_target",
    "exponent",
]  # fmt: skip

NEEDED_BY_STUDY = {"seconds_to_target": "target", "exponent": "grid"}
"""Figure -> the key of the study that it needs."""

OF_A_MEASUREMENT = ("score_gain", "loops_spent", "attention_gain")
"""Figures that need the key `measurement`; all but `exponent` need `arm`."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Corpus(_Strict):
    """What `loopmdm prepare` makes for the trainings."""

    input: tuple[str, ...] = Field(min_length=1)
    seq_len: int | None = Field(None, ge=1)
    vocab_size: int | None = Field(None, ge=2)
    validation_fraction: float = Field(0.05, gt=0, lt=1)


class Scale(_Strict):
    """How much is computed.

    Attributes:
        data: the corpus.
        flops: training FLOPs of every training; None where the settings say how long they are.
        seeds: trainings of every arm at its best learning rate, with run.seed = 0, 1, ...
        learning_rates: every arm is trained with each of them, with seed 0.
        points: validations along a training.
        rows: validation rows.
        ranks: processes of one training.
        settings: keys of the recipe that differ at this scale.
        options: measurement -> options that differ at this scale.
        loops: measurement, or `curve` -> numbers of loops at this scale.
        grid: instead of that of the study.
    """

    data: Corpus
    flops: float | None = Field(None, gt=0)
    seeds: int = Field(3, ge=1, le=MAX_SEEDS)
    learning_rates: tuple[float, ...] = Field((2e-3,), min_length=1)
    points: int = Field(12, ge=1)
    rows: int = Field(1024, ge=2)
    ranks: int = Field(1, ge=1)
    settings: dict[str, str] = {}
    options: dict[str, dict[str, str]] = {}
    loops: dict[str, Loops] = {}
    grid: dict[str, tuple[str, ...]] = {}


class Arm(_Strict):
    """One way to train.

    Attributes:
        about: what it is, for the page.
        settings: keys of the recipe that differ.
        learning_rate_factor: of all learning rates of the scale, for an optimizer that needs others: the grid keeps its size.
        flops_factor: of the training FLOPs of the scale, for an arm that is trained for longer.
    """

    about: str
    settings: dict[str, str] = {}
    learning_rate_factor: float = Field(1.0, gt=0)
    flops_factor: float = Field(1.0, gt=0)


class Measurement(_Strict):
    """What is measured on a trained model, by a command of `loopmdm`.

    Attributes:
        about: what it is, for the page.
        kind: tasks: `loopmdm evaluate --tasks`; probe: `loopmdm probe`.
        options: of the command, without dashes; `{data}` stands for the prepared folder of the study.
        loops: numbers of loops; those above twice the S_max of an arm are left out, and an arm without loops has 1 only.
        vary: one option and its values, each of which is measured.
        arms: those that are measured; all if empty.
    """

    about: str
    kind: Literal["tasks", "probe"]
    options: dict[str, str] = {}
    loops: Loops = ()
    vary: dict[str, tuple[str, ...]] = Field({}, max_length=1)
    arms: tuple[str, ...] = ()


class Rule(_Strict):
    """One condition of the verdict, on a figure of the analysis.

    Attributes:
        figure: its name, see `figures.py`.
        arm, reference: arms that it compares; `loops` and `reference_loops` are S_max if None.
        measurement, option: for figures of a measurement: its name, and the value of the varied option.
        holds: the claim holds if the interval of the figure is at or above this, or at or below with `below`.
        fails: it does not hold if the interval is below this, or above with `below`; the same as `holds` if None.
        below: small figures support the claim.
    """

    figure: FigureName
    arm: str = ""
    reference: str = ""
    loops: str | None = None
    reference_loops: str | None = None
    measurement: str = ""
    option: str = ""
    holds: float
    fails: float | None = None
    below: bool = False


class Study(_Strict):
    """A study.

    Attributes:
        name: of its file.
        claim: one sentence.
        source: paper and section.
        reported: what the paper reports.
        recipe: shipped recipe that all arms start from.
        settings: keys of the recipe that differ in all arms.
        arms: name -> arm; the first one is the reference.
        grid: key, or keys with spaces between them -> values: one arm for each combination, instead of `arms`.
        curve: numbers of loops of the validations along training, such as 4, chosen as in `Measurement.loops`.
        measurements: name -> what is measured at the end.
        target: bits per byte, for `seconds_to_target`.
        boards: name of the measurement whose boards the page draws; empty for none.
        verdict: all rules must hold for the claim to hold.
    """

    name: str
    claim: str
    source: str
    reported: str
    recipe: str
    settings: dict[str, str] = {}
    arms: dict[str, Arm] = {}
    grid: dict[str, tuple[str, ...]] = {}
    curve: Loops = ()
    measurements: dict[str, Measurement] = {}
    target: float | None = Field(None, gt=0)
    boards: str = ""
    verdict: tuple[Rule, ...] = Field(min_length=1)
    scales: dict[str, Scale] = Field(min_length=1)

    @model_validator(mode="after")
    def _settings_are_free(self) -> Self:
        scales, arms = self.scales.values(), self.arms.values()
        for settings in (self.settings, *(scale.settings for scale in scales), *(arm.settings for arm in arms)):
            for key, instead in DECIDED.items():
                if key in settings:
                    raise ValueError(f"settings: {key} is decided by the study; give {instead}")
        return self

    @model_validator(mode="after")
    def _factors_have_flops(self) -> Self:
        for name, arm in self.arms.items():
            for scale in (key for key, each in self.scales.items() if each.flops is None and arm.flops_factor != 1):
                raise ValueError(f"arms.{name}: flops_factor has no effect without scales.{scale}.flops")
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        if bool(self.arms) == bool(self.grid):
            raise ValueError("give either arms or grid")
        for rule in self.verdict:
            if problem := self._problem_of(rule):
                raise ValueError(f"verdict, {rule.figure}: {problem}")
        for name in (*self.boards.split(), *(n for s in self.scales.values() for n in (*s.options, *s.loops))):
            if name not in {*self.measurements, "curve"}:
                raise ValueError(f"{name!r} is no measurement; there are {', '.join(self.measurements)}")
        return self

    @model_validator(mode="after")
    def _curve_has_numbers(self) -> Self:
        curves = {f"scales.{name}.loops.curve": scale.loops.get("curve", ()) for name, scale in self.scales.items()}
        for key, curve in {"curve": self.curve, **curves}.items():
            for loops in curve:
                if not loops.isdecimal() or int(loops) < 1:
                    raise ValueError(f"{key}: {loops!r} is no number of loops from 1 on, such as 4")
        return self

    @model_validator(mode="after")
    def _loops_are_understood(self) -> Self:
        measured = {f"measurements.{name}.loops": each.loops for name, each in self.measurements.items()}
        for name, scale in self.scales.items():
            measured |= {f"scales.{name}.loops.{key}": loops for key, loops in scale.loops.items() if key != "curve"}
        for key, texts in measured.items():
            for text in texts:
                try:
                    understood = bool(parse_loops(text)[0])
                except UserError:
                    understood = False
                if not understood:
                    raise ValueError(
                        f"{key}: {text!r} is no number of loops such as 4, schedule such as 1-6-1, or adaptive:MIN-MAX"
                    )
        return self

    def _problem_of(self, rule: Rule) -> str:
        """Why a rule cannot be judged; empty if it can."""
        needed = NEEDED_BY_STUDY.get(rule.figure)
        if needed and not getattr(self, needed):
            return f"needs the key {needed}"
        for key, is_needed in (("arm", rule.figure != "exponent"), ("measurement", rule.figure in OF_A_MEASUREMENT)):
            if is_needed and not getattr(rule, key):
                return f"needs the key {key}"
        for name, known in (
            (rule.arm, self.arms), (rule.reference, self.arms), (rule.measurement, self.measurements)
        ):  # fmt: skip
            if name and name not in known:
                return f"{name!r} is none of {', '.join(known)}"
        return self._problem_of_measurement(rule) if rule.figure in OF_A_MEASUREMENT else ""

    def _problem_of_measurement(self, rule: Rule) -> str:
        """See `_problem_of`."""
        measured, kind = self.measurements[rule.measurement], "probe" if rule.figure == "attention_gain" else "tasks"
        if measured.kind != kind:
            return f"needs a measurement of kind {kind}, unlike {rule.measurement}"
        for arm in filter(None, (rule.arm, rule.reference)):
            if measured.arms and arm not in measured.arms:
                return f"{rule.measurement} is not measured on {arm}"
        values, *_ = [*measured.vary.values(), ("",)]
        if rule.option in values:
            return ""
        if values == ("",):
            return f"option {rule.option!r}, but nothing varies in {rule.measurement}"
        return f"option {rule.option!r} is none of those of {rule.measurement}: {', '.join(values)}"


def study_names() -> list[str]:
    """Names of the shipped studies."""
    return sorted(path.stem for path in DEFINITIONS.glob("*.yaml"))


def load_study(name: str) -> Study:
    """Read a study by the name of a shipped one, or by the path of a YAML file.

    Raises:
        UserError: there is no such study, or its file has a problem; the message names the key.
    """
    path = Path(name)
    if not path.is_file():
        path = DEFINITIONS / f"{name}.yaml"
    if not path.is_file():
        close = difflib.get_close_matches(name, study_names(), n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"no study {name!r}: {meant}give the path of a YAML file or one of: {', '.join(study_names())}")
    try:
        return Study.model_validate({"name": path.stem, **_merged(path, ())})
    except YamlError as error:
        raise UserError(str(error)) from None
    except ValidationError as error:
        raise UserError(f"{path}: " + "; ".join(map(_problem, error.errors()))) from None


def find_scale(study: Study, name: str) -> Scale:
    """One of the study's scales. Raises UserError if it has no such scale."""
    if name not in study.scales:
        raise UserError(f"--scale {name}: the study {study.name} has the scales {', '.join(study.scales)}")
    return study.scales[name]


def _merged(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The content of a file, with what it takes over from the study that its key `extends` names.

    Of `scales`, single keys are replaced; of everything else, the whole value. What the scales of the other study say about
    measurements that this one does not have is left out.

    Args:
        above: files that extend this one, each the next one.
    """
    content = read_yaml(path)
    if not isinstance(content, Section):
        raise UserError(f"{path}: must hold keys such as `claim:`, not a list or a single value")
    own: dict[str, Any] = dict(content)
    if "extends" not in own:
        return own
    name = own.pop("extends")
    places = [path.parent / f"{name}.yaml", DEFINITIONS / f"{name}.yaml"]
    base = next((place for place in places if place.is_file() and place.resolve() != path.resolve()), None)
    if base is None:
        raise UserError(f"{path}: extends {name}, but there is no {places[0]} and no shipped study of that name")
    if base.resolve() in above:
        raise UserError(f"{path}: extends {name}, which extends {path.stem}; remove one of the two")
    inherited = _merged(base, (*above, path.resolve()))
    merged = inherited | own
    if "arms" in own or "grid" in own:
        merged = {key: value for key, value in merged.items() if key not in ("arms", "grid") or key in own}
    known = {*merged.get("measurements", ()), "curve"}
    scales = {name: _only(scale, known) for name, scale in inherited.get("scales", {}).items()}
    return merged | {"scales": _deep(scales, own.get("scales", {}))}


def _only(scale: Value, known: set[str]) -> Value:
    """A scale without options of other measurements than these."""
    if not isinstance(scale, dict):
        return scale
    parts = {
        key: {name: value for name, value in scale[key].items() if name in known}
        for key in ("options", "loops")
        if isinstance(scale.get(key), dict)
    }
    return {**scale, **parts}


def _deep(base: Value, own: Value) -> Value:
    if not isinstance(base, dict) or not isinstance(own, dict):
        return own
    merged = {name: _deep(base[name], own[name]) if name in own else base[name] for name in base}
    return merged | {name: own[name] for name in own if name not in base}


def _problem(error: Any) -> str:
    """`arms.looped.about: Field required` of an error of pydantic."""
    key = ".".join(str(part) for part in error["loc"])
    return f"{key}: {error['msg']}" if key else error["msg"].removeprefix("Value error, ")
