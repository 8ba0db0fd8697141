"""The doctor names everything that a machine can lack, with a remedy, and never fails on what is absent."""

import importlib.metadata
import shutil

import pytest

from mindspore_impl.cli import doctor
from mindspore_impl.doctor import examine


@pytest.fixture
def bare(monkeypatch):
    """A machine without packages, compiler, CANN or device."""

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(examine, "CANN_FOLDERS", ("/nowhere",))
    for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_CUSTOM_OPP_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_everything_missing_has_a_remedy(bare):
    found = {finding.name: finding for finding in examine.examine() if finding.name not in ("isolation", "python")}
    for name in (*examine.REQUIRED, "device", "g++"):
        assert found[name].state == "missing" and found[name].remedy, name
    for name, (_, extra) in examine.OPTIONAL.items():
        assert found[name].state == "note" and f".[{extra}]" in found[name].remedy
    assert found["CANN"].remedy and found["custom operators"].remedy and not found["memory, disk"].remedy


def test_what_the_machine_has_is_ok(monkeypatch, tmp_path, ms_runtime, capsys):
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tmp_path))
    monkeypatch.setenv("ASCEND_CUSTOM_OPP_PATH", str(tmp_path))
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    states = {line[9:28].strip(): line.split()[0] for line in lines if "remedy:" not in line}
    for name in (*examine.REQUIRED, "python", "device", "CANN", "custom operators"):
        assert states[name] == "ok", name
