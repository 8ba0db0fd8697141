"""What a cache of finished stages gives back, refuses, and lets wait."""

import os
import threading

import pytest

from mindspore_impl import files
from mindspore_impl.curriculum import cache
from mindspore_impl.curriculum.cache import entry
from mindspore_impl.distributed import ranks

NOTE = {"result": {"status": "finished", "tokens": 7, "metrics": {"loss": 0.5}}, "seconds": 3.5}


@pytest.fixture
def stage(tmp_path):
    """A finished stage's folder."""
    folder = tmp_path / "one" / "stages" / "03_sft"
    for name in ("checkpoints/step_9/model.safetensors", "metrics.jsonl", "stage.json", "checkpoints/.half.tmp"):
        files.write_text(folder / name, name)
    return folder


def content(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def keep(cache, stage):
    with entry(str(cache), "f1") as found:
        found.keep(stage, NOTE)
    return found.path


def take(cache, folder, fingerprint="f1"):
    with entry(str(cache), fingerprint) as found:
        return found.take(folder)


def test_result_comes_back_whole_without_what_is_the_runs_own(tmp_path, stage):
    kept = keep(tmp_path / "cache", stage)
    assert kept.name == "f1-CPU-fp32"
    folder = tmp_path / "two" / "stages" / "05_other"
    files.write_text(folder / "half_made", "")
    assert take(tmp_path / "cache", folder) == NOTE
    names = ("checkpoints/step_9/model.safetensors", "metrics.jsonl")
    assert content(folder) == {name: name for name in names}
    assert [path.name for path in folder.parent.iterdir()] == ["05_other"], "no temporary folder stays"


def test_weights_are_linked_and_logs_can_grow_apart(tmp_path, stage):
    kept = keep(tmp_path / "cache", stage) / "files"
    weights = "checkpoints/step_9/model.safetensors"
    assert os.path.samefile(stage / weights, kept / weights)
    assert all(path.stat().st_mode & 0o222 == 0 for path in kept.rglob("*") if path.is_file())
    take(tmp_path / "cache", tmp_path / "two")
    with open(tmp_path / "two" / "metrics.jsonl", "a") as file:
        file.write("more")
    files.write_text(tmp_path / "two" / weights, "another")
    assert take(tmp_path / "cache", tmp_path / "three") == NOTE


def test_other_fingerprint_precision_or_no_cache_find_nothing(tmp_path, stage, monkeypatch):
    keep(tmp_path / "cache", stage)
    assert take(tmp_path / "cache", tmp_path / "two", "f2") is None
    monkeypatch.setattr(cache.runtime, "numerics", lambda: "Ascend-bf16")
    assert take(tmp_path / "cache", tmp_path / "two") is None
    with entry(None, "f1") as found:
        found.keep(stage, NOTE)
        assert found.take(tmp_path / "two") is None
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("name", ["files/metrics.jsonl", "files/checkpoints/step_9/model.safetensors", "entry.json"])
@pytest.mark.parametrize("damage", ["changed", "cut", "removed"])
def test_damaged_entry_is_reported_removed_and_made_again(tmp_path, stage, name, damage, capsys):
    path = keep(tmp_path / "cache", stage) / name
    os.chmod(path, 0o644)
    text = path.read_text()
    if damage == "removed":
        path.unlink()
    else:
        path.write_text(text[:-3] if damage == "cut" else text.replace("e", "i", 3))
    folder = tmp_path / "two"
    files.write_text(folder / "stage.json", "{}")
    assert take(tmp_path / "cache", folder) is None
    assert "is damaged (" in capsys.readouterr().out
    assert content(folder) == {"stage.json": "{}"}
    files.write_text(stage / "checkpoints/step_9/model.safetensors", "again")
    keep(tmp_path / "cache", stage)
    assert take(tmp_path / "cache", folder) == NOTE


def test_changed_note_is_damage(tmp_path, stage, capsys):
    path = keep(tmp_path / "cache", stage) / "entry.json"
    path.write_text(path.read_text().replace('"loss": 0.5', '"loss": 0.4'))
    assert take(tmp_path / "cache", tmp_path / "two") is None
    assert "entry.json was changed" in capsys.readouterr().out


def test_entry_that_points_outside_is_damaged(tmp_path, stage, capsys):
    path = keep(tmp_path / "cache", stage) / "entry.json"
    found = files.read_json(path)
    del found["sha256"]
    found["files"]["../../../secret"] = found["files"].pop("metrics.jsonl")
    files.write_json(path, found | {"sha256": files.sha256_json(found)})
    assert take(tmp_path / "cache", tmp_path / "two") is None
    assert "points outside" in capsys.readouterr().out


def test_a_full_disk_costs_the_entry_and_not_the_run(tmp_path, stage, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.shutil, "copyfile", full)
    keep(tmp_path / "cache", stage)
    assert "could not be kept" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["locks"]


def test_beyond_its_size_the_longest_unused_entries_go_but_none_in_use(tmp_path):
    cache, uses = tmp_path / "cache", iter(range(1000, 2000))

    def add(name, limit=0):
        files.write_text(tmp_path / name / "metrics.jsonl", "x" * 700)
        with entry(str(cache), name, limit) as found:
            found.keep(tmp_path / name, NOTE)
        os.utime(found.path, (when := next(uses), when))
        return sum(path.stat().st_size for path in found.path.rglob("*") if path.is_file())

    def names():
        return sorted(path.name.split("-")[0] for path in cache.iterdir() if path.name != "locks")

    sizes = [add(name) for name in "abc"]
    assert names() == ["a", "b", "c"] and len(set(sizes)) == 1, "no bound without a limit"
    assert take(cache, tmp_path / "taken", "a") == NOTE  # a is the newest now
    with entry(str(cache), "b"):  # somebody computes or takes b, the longest unused
        add("d", 3 * sizes[0])
    assert names() == ["a", "b", "d"]
    add("e", 3 * sizes[0])
    assert names() == ["a", "d", "e"]
    add("f", 10)
    assert names() == ["f"], "what was added stays whatever its size"


def test_second_run_waits_and_takes_instead_of_computing(tmp_path, stage, monkeypatch, capsys):
    monkeypatch.setattr(cache, "_WAIT_SECONDS", 0.01)
    waits, got = threading.Event(), []
    monkeypatch.setattr(ranks, "should_stop", lambda: waits.set() or False)
    other = threading.Thread(target=lambda: got.append(take(tmp_path / "cache", tmp_path / "two")))
    with entry(str(tmp_path / "cache"), "f1") as found:
        assert found.take(stage) is None
        other.start()
        assert waits.wait(20) and got == []
        found.keep(stage, NOTE)
    other.join(20)
    assert got == [NOTE] and "another run computes this now" in capsys.readouterr().out


def test_a_waiting_run_can_be_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "should_stop", lambda: True)
    with entry(str(tmp_path), "f1"), pytest.raises(ranks.Stopped), entry(str(tmp_path), "f1"):
        pass
