"""Saving beside the steps: what is stored, what a step waits for, and what faults, stops and full disks leave."""

import json
import os
import threading
from concurrent.futures import wait
from dataclasses import replace

import numpy as np
import pytest

from mindspore_impl import checkpoint, files
from mindspore_impl.errors import UserError
from tests.training.small import OPTIONS, Stream, equal, linear_network, lines, run

pytestmark = pytest.mark.usefixtures("linear_objective")
EVERY_STEP = replace(OPTIONS, save_steps=1, save_total_limit=100)


class Watched(Stream):
    """Calls `before(step)` ahead of each step."""

    def __init__(self, before, **more):
        super().__init__(**more)
        self.before = before

    def steps(self, start, stop):
        for step, batches in enumerate(super().steps(start, stop), start):
            self.before(step)
            yield batches


def hashes(folder):
    """SHA-256 of weights and optimizer state by checkpoint."""
    found = {}
    for path in sorted((folder / "checkpoints").glob("step_*/manifest.json")):
        listed = json.loads(path.read_text())["files"]
        found[path.parent.name] = [listed[f"{name}.safetensors"]["sha256"] for name in ("weights", "optimizer")]
    return found


@pytest.fixture
def held_back(monkeypatch):
    """An event that every save waits for."""
    real, go = checkpoint.save, threading.Event()
    monkeypatch.setattr(checkpoint, "save", lambda *args: go.wait(60) and real(*args))
    return go


@pytest.fixture(scope="module")
def synchronous(tmp_path_factory, graphs):
    folder = tmp_path_factory.mktemp("synchronous")
    with pytest.MonkeyPatch.context() as patch:
        graphs.use(patch, linear=True)
        return folder, *run(folder, Stream(), options=replace(EVERY_STEP, async_checkpoint=False))


def test_beside_the_steps_the_same_is_stored(synchronous, tmp_path):
    folder, _, expected = synchronous
    _, result = run(tmp_path, Stream(), options=EVERY_STEP)
    assert hashes(tmp_path) == hashes(folder) and len(hashes(folder)) == 8
    assert lines(tmp_path) == lines(folder)
    assert result["checkpoint_copy_seconds"] > 0 and result["checkpoint_wait_seconds"] >= 0
    assert expected["checkpoint_wait_seconds"] < result["seconds"] + result["compile_seconds"]


def test_steps_go_on_while_a_checkpoint_is_written_which_holds_its_own_step(synchronous, tmp_path, held_back):
    def before(step):
        if step == 5:  # the checkpoint of step 3 is still under way, and of the six steps none was kept waiting
            assert not list(tmp_path.glob("checkpoints/step_*"))
            held_back.set()

    run(tmp_path, Watched(before), options=replace(OPTIONS, save_total_limit=9))
    expected = hashes(synchronous[0])
    assert hashes(tmp_path) == {name: expected[name] for name in ("step_00000003", "step_00000006", "step_00000008")}


def test_a_save_that_is_due_too_early_waits_and_the_wait_is_counted(tmp_path, monkeypatch):
    real = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *args: threading.Event().wait(0.1) or real(*args))
    _, result = run(tmp_path, Stream(), options=EVERY_STEP)
    assert len(hashes(tmp_path)) == 8
    assert result["checkpoint_wait_seconds"] > 0.3
    position = checkpoint.latest(tmp_path / "checkpoints").position["progress"]
    assert position["checkpoint_wait_seconds"] == result["checkpoint_wait_seconds"]


def test_a_fault_of_writing_ends_the_stage_at_the_next_step(synchronous, tmp_path, monkeypatch):
    real, background, savers, go = checkpoint.save, checkpoint.Background, [], threading.Event()

    def save(folder, step, *args):
        if step == 3:
            assert go.wait(60)
            raise UserError("the disk of step 3 is full")
        return real(folder, step, *args)

    monkeypatch.setattr(checkpoint, "save", save)
    monkeypatch.setattr(checkpoint, "Background", lambda *args: savers.append(background(*args)) or savers[-1])
    stream = Watched(lambda step: step == 4 and (go.set() or wait([savers[0]._job], timeout=60)))
    with pytest.raises(UserError, match="the disk of step 3 is full"):
        run(tmp_path, stream, options=replace(OPTIONS, save_steps=3))
    assert stream.asked[-1] == 4  # the step that was due when the thread had ended
    monkeypatch.setattr(checkpoint, "save", real)
    equal(run(tmp_path, Stream())[0], synchronous[1])


def test_the_log_is_durable_before_the_checkpoint_that_counts_on_it(tmp_path, monkeypatch):
    from mindspore_impl.training.metrics import MetricsLog

    events, real_sync, real_save = [], MetricsLog.sync, checkpoint.save
    monkeypatch.setattr(MetricsLog, "sync", lambda self: (real_sync(self), events.append("log")))
    monkeypatch.setattr(checkpoint, "save", lambda *args: (events.append("checkpoint"), real_save(*args))[1])
    run(tmp_path, Stream(), options=EVERY_STEP)
    assert events == ["log", "checkpoint"] * 8


def test_an_interrupted_run_finishes_the_checkpoint_under_way(tmp_path, held_back):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Watched(lambda step: step < 4 or held_back.set(), raise_at=5))
    assert checkpoint.latest(tmp_path / "checkpoints").step == 3


def test_every_so_many_steps_a_checkpoint_is_kept_and_says_what_model_it_is_of(tmp_path):
    options = replace(OPTIONS, save_steps=5, save_total_limit=1, keep_every=2)
    run(tmp_path, Stream(), options=options, config={"model_type": "llama"})
    assert [int(name[5:]) for name in hashes(tmp_path)] == [2, 4, 6, 8]
    path = checkpoint.latest(tmp_path / "checkpoints").path
    assert files.read_json(path / "config.json") == {"model_type": "llama"}
    assert "config.json" in files.read_json(path / "manifest.json")["files"]


@pytest.mark.parametrize("position", [{}, {"progress": {"step": 3, "of_a_newer_program": 1, "window": {}}}])
def test_a_position_of_another_program_is_refused(tmp_path, position):
    held, state = checkpoint.weights_of(linear_network()), {"global_step": np.zeros(1, np.float32)}
    checkpoint.save(tmp_path / "checkpoints", 3, held, state, position, 1)
    with pytest.raises(UserError, match="step_00000003"):
        run(tmp_path, Stream())


def test_a_log_that_cannot_be_written_loses_nothing(synchronous, tmp_path, monkeypatch):
    """The disk gets full in the fourth line of the log: one message; the resumed run ends as an uninterrupted one."""
    from mindspore_impl.training import metrics

    left, real = iter(range(3)), files.write_all

    def write_all(file, data):
        if str(file.name) == str(tmp_path / "metrics.jsonl") and next(left, None) is None:
            real(file, data[:7])
            raise OSError(28, "No space left on device")
        return real(file, data)

    monkeypatch.setattr(metrics.files, "write_all", write_all)
    with pytest.raises(UserError, match=f"{tmp_path}.*No space left"):
        run(tmp_path, Stream(), options=EVERY_STEP)
    monkeypatch.setattr(metrics.files, "write_all", real)
    equal(run(tmp_path, Stream(), options=EVERY_STEP)[0], synchronous[1])
    assert lines(tmp_path) == lines(synchronous[0])


def test_a_stage_on_a_disk_that_is_really_full(synchronous, small_disk):
    disk, remount = small_disk
    folder = disk / "stage"
    folder.mkdir()
    room = os.statvfs(disk)
    (disk / "filler").write_bytes(b"0" * (room.f_bavail * room.f_bsize - 36 * 1024))
    options = replace(EVERY_STEP, save_total_limit=1, logging_steps=1, tensorboard=True)
    with pytest.raises(UserError, match="disk/stage/.*No space left on device") as error:
        run(folder, Stream(), options=options)
    assert str(error.value).count("No space") == 1
    remount("size=1m")
    found, result = run(folder, Stream(), options=options)
    assert result["steps"] == 8
    equal(found, synchronous[1])
