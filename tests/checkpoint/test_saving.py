"""Writing checkpoints: equal bytes, what is kept, and what a kill or a full disk leaves."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from mindspore_impl import checkpoint, files
from mindspore_impl.checkpoint import saving
from mindspore_impl.errors import UserError
from tests.checkpoint.small import FILES, arrays, check, numbered, write

ROOT = Path(__file__).resolve().parents[2]


def test_the_bytes_are_those_of_the_safetensors_library():
    draw = np.random.default_rng(0)
    cases = [
        {"x": draw.normal(size=(3, 5)).astype(np.float32), "a.\u00e9": np.zeros((2, 0), np.float32)},
        {"step": np.array([7], np.int32), "z": np.float32([[1]]).T, "b": np.zeros((), np.float32),
         "h": np.ones(3, np.float16), "d": np.ones(2), "i": np.arange(4)},
        {"big": draw.normal(size=(1100, 1024)).astype(np.float32)[:, ::-1]},
        {},
    ]  # fmt: skip
    for case in cases:
        expected = save({name: np.array(array, order="C") for name, array in case.items()})
        assert b"".join(saving.safetensors_blocks(case)) == expected


def test_a_file_that_takes_a_part_at_a_time_gets_all():
    class Slow(io.RawIOBase):
        taken = b""

        def write(self, data):
            self.taken += bytes(data[:3])
            return min(3, len(data))

    file = Slow()
    files.write_all(file, b"all of it")
    assert file.taken == b"all of it"


def test_every_file_is_flushed_before_the_folder_is_named(tmp_path, monkeypatch):
    done, real_sync, real_rename = [], os.fsync, os.rename

    def fsync(handle):
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        real_sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", lambda *paths: (done.append("rename"), real_rename(*paths)))
    write(tmp_path, 1)
    before, after = done[: done.index("rename")], done[done.index("rename") + 1 :]
    assert set(FILES) < set(before)
    assert before[-1].startswith(".step_00000001.")  # the folder itself, with the names in it
    assert after[0] == tmp_path.name  # the folder around it, before LATEST names what is in it


def test_a_function_may_write_the_weights_and_the_newest_and_the_best_are_kept(tmp_path):
    weights, optimizer = arrays(1)
    found = checkpoint.save(tmp_path, 1, lambda path: save_file(weights, path), optimizer, {}, 1)
    assert found.weights_sha256 == files.sha256_file(found.weights_path)
    assert checkpoint.latest(tmp_path) == found
    for step, metric in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 1.5)):
        write(tmp_path, step, keep=2, metric=metric)
    assert numbered(tmp_path) == ["step_00000002", "step_00000004", "step_00000005"]
    assert checkpoint.selected(tmp_path, "best").step == 2
    assert checkpoint.selected(tmp_path, "last").step == 5


def test_steps_are_ordered_as_numbers(tmp_path):
    write(tmp_path, 99_999_998, 99_999_999, 100_000_000, keep=2)
    assert checkpoint.latest(tmp_path).step == 100_000_000
    assert numbered(tmp_path) == ["step_100000000", "step_99999999"]


def test_the_best_stays_the_best_after_a_resume_before_it(tmp_path):
    write(tmp_path, 10, metric=2.0)
    write(tmp_path, 20, metric=1.0)
    write(tmp_path, 15, metric=1.5)  # as after damage of 20's optimizer state: 15 is published, 20 still the best
    assert checkpoint.latest(tmp_path).step == 15
    assert checkpoint.selected(tmp_path, "best").step == 20
    write(tmp_path, 20, metric=1.2)  # it is written again, and is what it is now
    assert checkpoint.selected(tmp_path, "best").metric == 1.2


def test_the_pointer_is_written_after_the_folder(tmp_path, monkeypatch):
    write(tmp_path, 10)
    seen = []
    real = files.write_text

    def spy(path, text):
        if path.name in ("BEST", "LATEST"):
            seen.append((path.name, (tmp_path / text.strip() / "manifest.json").exists()))
        real(path, text)

    monkeypatch.setattr(files, "write_text", spy)
    write(tmp_path, 20, metric=1.0)
    assert seen == [("BEST", True), ("LATEST", True)]


def test_the_disk_gets_full_at_any_moment(tmp_path, monkeypatch):
    """Whichever call fails first, and all after it: one message, and the old checkpoint or the new one counts."""
    names = ("fsync", "rename", "replace", "mkdir", "chmod")
    steps, moments = [], 0
    while len(steps) < 2 or steps[-1] == 10:
        folder = tmp_path / str(moments)
        write(folder, 10)
        calls = iter(range(10_000))

        def guarded(real, calls=calls, limit=moments):
            def call(*args, **more):
                if next(calls) >= limit:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(*args, **more)

            return call

        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(os, name, guarded(getattr(os, name)))
            patch.setattr(files, "write_all", guarded(files.write_all))
            try:
                write(folder, 20)
            except UserError as error:
                assert "No space left on device" in str(error) and str(folder) in str(error)
        found = checkpoint.latest(folder)
        check(found)
        steps.append(found.step)
        write(folder, 30)
        assert checkpoint.latest(folder).step == 30 and not list(folder.glob(".*"))
        moments += 1
    assert steps == [10] * (moments - 1) + [20] and moments > 15


SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
from mindspore_impl import checkpoint, files
from tests.checkpoint.small import check, write

def kill_after(calls):
    def counted(real):
        def call(*args, **more):
            nonlocal calls
            if calls == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            calls -= 1
            return real(*args, **more)
        return call
    for name in ("fsync", "rename", "replace", "mkdir", "chmod", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    files.write_all = counted(files.write_all)

def child(work):
    process = os.fork()
    if process == 0:
        work()
        os._exit(0)
    return process

def at_every_call(folder):
    write(folder, 10, 20, keep=2)
    found, calls = [], 0
    while True:
        def work():
            kill_after(calls)
            write(folder, 30, keep=2, metric=1.0)
        status = os.waitpid(child(work), 0)[1]
        latest = checkpoint.latest(folder)
        check(latest)
        found.append(latest.step)
        for path in folder.glob("step_*"):  # one that is being removed does not look like a checkpoint any more
            assert len(list(path.iterdir())) == 5, path
        if not os.WIFSIGNALED(status):
            break
        if latest.step == 30:
            write(folder, 30, keep=3)  # the save that follows finds no leftovers in its way
        calls += 1
    assert calls > 20, calls
    assert 20 in found and 30 in found and found == sorted(found), found
    check(checkpoint.selected(folder, "best"))

def at_any_time(folder):
    draw, start = random.Random(0), time.perf_counter()
    write(folder, 1)
    usual, kills = time.perf_counter() - start, 0
    while kills < 20 or checkpoint.latest(folder).step < 10:
        before = checkpoint.latest(folder).step
        def work():
            for step in range(before + 1, before + 10_000):
                write(folder, step, keep=2)
        process = child(work)
        time.sleep(draw.uniform(0, 4 * usual))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        latest = checkpoint.latest(folder)
        check(latest)
        assert latest.step >= before
        kills += 1

globals()[sys.argv[1]](Path(sys.argv[2]))
"""


@pytest.mark.parametrize("moment", ["at_every_call", "at_any_time"])
def test_a_kill_before_any_system_call_is_harmless(tmp_path, moment):
    command = [sys.executable, "-c", SCRIPT, moment, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "", done.stderr[-3000:]  # no damage was found on the way


def test_a_disk_that_is_really_full(small_disk):
    disk, _ = small_disk
    folder = disk / "checkpoints"
    write(folder, 10)
    (disk / "filler").write_bytes(b"0" * 32768)
    with pytest.raises(UserError, match="step_00.*No space left on device.*earlier"):
        write(folder, *range(20, 40))
    found = checkpoint.latest(folder)
    check(found)
    assert not list(folder.glob(".*"))
    (disk / "filler").unlink()
    write(folder, found.step + 1)
    assert checkpoint.latest(folder).step == found.step + 1
