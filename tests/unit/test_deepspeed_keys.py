"""The DeepSpeed file of a run: the table of its keys against the installed library, and what is refused."""

import json
from importlib.metadata import version
from typing import get_args

import pytest
from pydantic import BaseModel

from pretrain.config import deepspeed_keys
from pretrain.config.deepspeed_keys import DEEPSPEED_KEYS
from pretrain.config.load import dump_settings, load_settings
from pretrain.errors import ConfigError, UserError
from tests.launching import ROOT

TINY = str(ROOT / "tests" / "tiny.yaml")


class Recorder(dict):
    """A configuration that notes which keys the library looks up."""

    def __init__(self, content=(), seen=None):
        super().__init__(content)
        self.seen = set() if seen is None else seen

    def __copy__(self):
        return Recorder(self, self.seen)

    def __contains__(self, key):
        self.seen.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key):
        self.seen.add(str(key))
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.seen.add(str(key))
        return super().get(key, default)

    def keys(self):
        return self


@pytest.fixture(scope="module")
def read_by_deepspeed(world):
    """The keys that the installed DeepSpeed looks up in a configuration, or in one of its sections, once ranks are connected."""
    deepspeed = pytest.importorskip("deepspeed")
    from deepspeed.runtime.config import DeepSpeedConfig

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = (
        False  # it would be compiled, under a lock that a killed test leaves
    )
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)

    def keys(section=None):
        nested = Recorder()
        whole = Recorder({"train_batch_size": 1} | ({section: nested} if section else {}))
        DeepSpeedConfig(whole)
        return nested.seen if section else whole.seen

    return keys


def test_the_table_is_of_the_installed_version():
    assert f"DeepSpeed {version('deepspeed')}" in deepspeed_keys.__doc__


def test_every_top_level_key_of_the_library_is_in_exactly_one_table(read_by_deepspeed):
    tables = [
        DEEPSPEED_KEYS,
        deepspeed_keys.DERIVED_DEEPSPEED_KEYS,
        deepspeed_keys.UNUSED_DEEPSPEED_KEYS,
        deepspeed_keys.REMOVED_DEEPSPEED_KEYS,
    ]
    listed = [key for table in tables for key in table]
    assert sorted(listed) == sorted(read_by_deepspeed())


@pytest.mark.parametrize("section", ["aio", "flops_profiler", "checkpoint", "timers"])
def test_sections_that_the_library_reads_key_by_key(read_by_deepspeed, section):
    assert read_by_deepspeed(section) == set(DEEPSPEED_KEYS[section])


def test_sections_that_the_library_validates(read_by_deepspeed):
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    models = {
        "zero_optimization": DeepSpeedZeroConfig, "comms_logger": CommsLoggerConfig, "tensorboard": TensorBoardConfig,
        "wandb": WandbConfig, "csv_monitor": CSVConfig, "comet": CometConfig,
    }  # fmt: skip
    for section, model in models.items():
        assert_same(model, DEEPSPEED_KEYS[section])
    assert_same(DeepSpeedThroughputTimerConfig, DEEPSPEED_KEYS["timers"]["throughput"])


def assert_same(model, table):
    fields = {info.alias or name: info.annotation for name, info in model.model_fields.items()}
    assert fields.keys() == table.keys()
    for name, annotation in fields.items():
        parts = get_args(annotation) or (annotation,)
        nested = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
        if nested:
            assert_same(nested[0], table[name])
        elif {bool, float} & set(parts) or annotation is int:
            assert table[name] in parts, name


@pytest.fixture
def problems(tmp_path):
    def of(content, *overrides):
        path = tmp_path / "ds.json"
        raw = content if isinstance(content, str) else json.dumps(content)
        path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        try:
            load_settings(TINY, [f"parallel.ds_config={path}", *overrides])
        except ConfigError as error:
            return [str(problem).removeprefix(f"parallel.ds_config={path}: ") for problem in error.problems]
        return []

    return of


def test_the_shipped_files_and_the_usual_keys_are_accepted(problems):
    for path in sorted((ROOT / "ds_configs").glob("*.json")):
        assert problems(path.read_text(), f"parallel.zero_stage={path.stem[-1]}") == []
    usual = {"reduce_bucket_size": 5e8, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "none"}}
    assert problems({"zero_optimization": usual}, "parallel.offload=optimizer") == []
    assert problems('\ufeff{"wall_clock_breakdown": true, "communication_data_type": "fp32"}\r\n') == []


UNKNOWN = {
    '{\n"wall_clock_breakdwon": true}': "line 2: the key 'wall_clock_breakdwon' does not exist in DeepSpeed; did you mean "
    "'wall_clock_breakdown'?",
    '{"comunication_data_type": "fp16"}': "line 1: the key 'comunication_data_type' does not exist in DeepSpeed; did you mean "
    "'communication_data_type'?",
    '{"zero_optimization": {\n "overlap_com": false}}': "line 2: the key 'zero_optimization.overlap_com' does not exist in "
    "DeepSpeed; did you mean 'overlap_comm'?",
    '{"zero_optimization": {"offload_optimizer": {"devices": "cpu"}}}': "line 1: the key "
    "'zero_optimization.offload_optimizer.devices' does not exist in DeepSpeed; did you mean 'device'?",
    '{"overlap_comm": false}': "line 1: the key 'overlap_comm' belongs into 'zero_optimization'; move it there",
    '{"zero_optimization": {"wall_clock_breakdown": true}}': "line 1: the key 'zero_optimization.wall_clock_breakdown' belongs "
    "to the top level; move it there",
    '{"qqq": 1}': "line 1: the key 'qqq' does not exist in DeepSpeed; remove it from the file",
    '{"train_batchsize": 1}': "line 1: the key 'train_batchsize' does not exist in DeepSpeed; did you mean 'train_batch_size'?",
    '{"activation_checkpointing": {}}': "line 1: the key 'activation_checkpointing' follows from parallel.recompute; remove it "
    "from the file",
    '{"elasticity": {}}': "line 1: the key 'elasticity' has no effect on this training; remove it from the file",
    '{"zero_optimization": {"overlap_comm": "maybe"}}': 'line 1: zero_optimization.overlap_comm="maybe" should be true or false',
    '{"zero_optimization": {"reduce_bucket_size": "auto"}}': 'line 1: zero_optimization.reduce_bucket_size="auto" has no value '
    "that DeepSpeed itself could use; give one or remove the key",
    '{"zero_optimization": {"reduce_bucket_size": -1}}': "line 1: zero_optimization.reduce_bucket_size=-1 should be a whole "
    "number from 0",
    '{"zero_optimization": {"reduce_bucket_size": 1.5}}': "line 1: zero_optimization.reduce_bucket_size=1.5 should be a whole "
    "number from 0",
    '{"zero_optimization": {"offload_param": {"device": "disk"}}}': 'line 1: zero_optimization.offload_param.device="disk" '
    'should be "none" or "cpu" or "nvme"',
    '{"zero_optimization": {\n "overlap_comm": true}}': "has overlap_comm=true, which needs ZeRO-2 or ZeRO-3: with a lower stage, "
    "gradients are reduced after the last backward pass; remove it, or set parallel.zero_stage to 2 or 3",
    '{"zero_optimization": {\n "round_robin_gradients": true}}': "line 2: zero_optimization.round_robin_gradients=true: "
    "DeepSpeed 0.19.8 then mixes up the weights that a checkpoint saves for evaluation; remove it from the file",
    '{"zero_optimization": {\n "offload_optimizer": {"device": "cpu"}}}': "line 2: zero_optimization.offload_optimizer.device="
    '"cpu", but parallel.offload=none; remove it from the file, or set parallel.offload=optimizer',
    '{"zero_optimization": {"offload_param": {"device": "nvme"}}}': 'line 1: zero_optimization.offload_param.device="nvme", but '
    "parallel.offload=none; remove it from the file, or set parallel.offload=parameters",
    '{"zero_optimization": {"cpu_offload": true}}': "line 1: zero_optimization.cpu_offload=true: an old name of offload_optimizer, "
    "which follows from parallel.offload; remove it from the file",
    '{"zero_optimization": {"offload_param": null}}': "line 1: the key 'zero_optimization.offload_param' must be an object; "
    "correct the file",
    '{"wall_clock_breakdown": 1}': "line 1: wall_clock_breakdown=1 should be true or false",
    '{"a": 1,\n"a": 2}': "has the key 'a' twice, on lines 1 and 2; keep one of them",
    '{\n"dump_state": true,\n}': "is not valid JSON: line 3: a comma before the closing bracket; remove it",
    '{\n"dump_state": true // why\n}': "is not valid JSON: line 2: JSON has no comments; remove it",
    '// mine\n{"dump_state": true}': "is not valid JSON: line 1: JSON has no comments; remove it",
    '{"dump_state": True}': "is not valid JSON: line 1: write true, false or null in lower case",
    "{'dump_state': true}": "is not valid JSON: line 1: Expecting property name enclosed in double quotes; correct that line",
    '{"gradient_predivide_factor": NaN}': "has NaN, which is no JSON number; give a finite one",
    "": "is not valid JSON: line 1: Expecting value; correct that line",
}


@pytest.mark.parametrize("text", UNKNOWN)
def test_what_deepspeed_would_ignore_or_fail_on_is_refused_with_its_line(problems, text):
    assert problems(text) == [UNKNOWN[text]]


def test_a_device_that_contradicts_the_setting_is_refused(problems):
    def refused(key, device, offload, stage=3):
        content = {"zero_optimization": {key: {"device": device}}}
        return problems(content, f"parallel.offload={offload}", f"parallel.zero_stage={stage}")

    for key, device, offload, setting in (
        ("offload_param", "cpu", "optimizer", "parameters"),
        ("offload_param", "none", "parameters", "optimizer"),
        ("offload_optimizer", "none", "optimizer", "none"),
    ):
        assert refused(key, device, offload) == [
            f'line 1: zero_optimization.{key}.device="{device}", but parallel.offload={offload}; remove it from the file, or set '
            f"parallel.offload={setting}"
        ]
    assert refused("offload_optimizer", "nvme", "parameters") == refused("offload_optimizer", "none", "none") == []


def test_the_text_of_a_file_in_place_of_its_path():
    with pytest.raises(ConfigError, match=r"is the text of a file; save it as a JSON file and give its path"):
        load_settings(TINY, ['parallel.ds_config={"zero_optimization":{"stage":1}}'])


def test_all_mistakes_of_a_file_at_once(problems):
    assert len(problems({"a": 1, "zero_optimization": {"stage": 2, "b": 1, "offload_param": {"c": 1}}})) == 4


def test_a_run_trained_with_a_file_of_its_own_is_opened_without_it(tmp_path, monkeypatch):
    """Evaluation needs no ZeRO: neither the file, which may be gone, nor its stage counts."""
    from pretrain.commands import load_run

    ds_config = tmp_path / "ds.json"
    ds_config.write_text('{"zero_optimization": {"stage": 3}}')
    settings = load_settings(TINY, [f"parallel.ds_config={ds_config}", "parallel.zero_stage=3", "model.vocab_size=100"])
    (tmp_path / "config.yaml").write_text(dump_settings(settings))
    ds_config.unlink()
    monkeypatch.setattr(load_run, "checkpoint_of", lambda folder, step: folder / "step_1")
    with pytest.raises(UserError, match=r"manifest\.json: is missing"):  # the next thing that is read
        load_run.open_run(tmp_path, None)
