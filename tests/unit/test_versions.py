"""Supported versions of Python and of the libraries: the same in setup.py, in the pins, in the error messages."""

import re
from argparse import Namespace

import pytest
from packaging.specifiers import SpecifierSet

from pretrain import cli, main
from pretrain.commands import doctor
from pretrain.machine import versions
from pretrain.machine.versions import SUPPORTED, unsupported_versions
from tests.launching import ROOT, run


def pins(file):
    """Distribution -> version."""
    lines = (ROOT / "launchers" / file).read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_setup_has_the_same_ranges():
    text = (ROOT / "setup.py").read_text()
    assert {name: re.search(rf'"{name}([^"]+)"', text)[1] for name in SUPPORTED} == {
        n: v for n, (v, _) in SUPPORTED.items()
    }


def test_both_pin_files_differ_in_megatron_core_only():
    for_311, for_312 = pins("pins.txt"), pins("pins-py312.txt")
    assert for_311.keys() == for_312.keys()
    assert {name for name in for_311 if for_311[name] != for_312[name]} == {"megatron-core"}
    for name, (wanted, _) in SUPPORTED.items():
        assert for_311[name] in SpecifierSet(wanted) and for_312[name] in SpecifierSet(wanted)


@pytest.fixture
def installed(monkeypatch):
    """Versions that count as installed."""
    found = {"torch": "2.11.0", "deepspeed": "0.19.8", "megatron-core": "0.16.1"}
    monkeypatch.setattr(versions, "package_version", found.get)
    return found


@pytest.mark.parametrize(
    ("name", "version", "accepted"),
    [
        ("torch", "2.10.0", False), ("torch", "2.13.0+cpu", True), ("torch", "2.11.0a0+eb65b36914.nv26.02", True),
        ("torch", "unknown", False), ("torch", None, True), ("deepspeed", "0.19.7", False), ("deepspeed", "0.20.0", False),
        ("megatron-core", "0.15.3", False), ("megatron-core", "0.19.2", True), ("megatron-core", "0.20.0rc1", False),
    ],
)  # fmt: skip
def test_a_version_out_of_range_is_named_with_the_reason_and_the_command(installed, name, version, accepted):
    """A library that is missing is named elsewhere."""
    installed[name] = version
    needed, reason = SUPPORTED[name]
    message = f"{name} {version} is installed, but {name}{needed} is needed: {reason}; run pip install '{name}{needed}'"
    assert unsupported_versions() == ([] if accepted else [message])


def test_every_command_that_computes_refuses_them(installed, capsys, monkeypatch):
    installed |= {"torch": "2.9.1", "megatron-core": "0.15.3"}
    monkeypatch.setattr(doctor, "_device_rows", list)
    starts = [
        lambda: main.main(["--config", "smoke"]),
        lambda: cli.main(["evaluate", "no/such/run"]),
        lambda: cli.main(["sample", "no/such/run"]),
    ]
    for start in starts:
        assert start() == 2
        printed = capsys.readouterr().err
        assert "error: torch 2.9.1 is installed" in printed and "\nmegatron-core 0.15.3 is installed" in printed
    assert doctor.run(Namespace()) == 1
    assert "torch 2.9.1 is installed, but torch>=2.11 is needed" in capsys.readouterr().out


@pytest.mark.parametrize(("target", "file"), [("3.11", "pins.txt"), ("3.12", "pins-py312.txt"), ("3.13", None)])
def test_the_bundle_for_a_gpu_machine_has_the_versions_of_its_python(tmp_path, target, file):
    """A stand-in for Python notes what pip would download."""
    (tmp_path / "python").write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/calls\n")
    (tmp_path / "python").chmod(0o755)
    words = ["bash", ROOT / "tests/gpu/bundle.sh", tmp_path / "bundle", "megatron_core"]
    done = run(words, TARGET=target, PYTHON=str(tmp_path / "python"))
    if file is None:
        assert done.returncode == 2 and "TARGET=3.13: 3.11 or 3.12 is needed" in done.stderr
        assert not (tmp_path / "bundle").exists()
    else:
        call = (tmp_path / "calls").read_text()
        assert f"--python-version {target} " in call and call.endswith(
            f" megatron-core=={pins(file)['megatron-core']}\n"
        )
