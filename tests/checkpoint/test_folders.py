"""Checkpoints: what is written comes back bit for bit, and what is damaged is never used."""

import builtins
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mindspore_impl import checkpoint, files
from mindspore_impl.errors import UserError
from tests.checkpoint.small import FILES, arrays, check, write


def test_what_is_saved_comes_back(tmp_path):
    write(tmp_path, 20)
    found = checkpoint.latest(tmp_path)
    assert (found.path.name, found.step, found.position) == ("step_00000020", 20, {"step": 20})
    assert (tmp_path / "LATEST").read_text() == "step_00000020\n"
    check(found)
    weights, _ = arrays(20)
    for name, array in checkpoint.read_weights(found.path).items():
        np.testing.assert_array_equal(array, weights[name])
    assert found.weights_sha256 == files.sha256_file(found.weights_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert sorted(path.name for path in found.path.iterdir()) == sorted(FILES)


def test_an_empty_folder_holds_none(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "absent") is None
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.selected(tmp_path, "last")
    write(tmp_path, 1)
    with pytest.raises(UserError, match="select=last"):
        checkpoint.selected(tmp_path, "best")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def lie(path):
    path.write_text(path.read_text().replace('"step": 20', '"step": 21'))


def lock(path):
    """open() refuses it, since root may read every file."""
    locked.add(str(path))


locked = set()
DAMAGES = [
    (name, damage, said)
    for name in FILES[:4]
    for damage, said in ((truncate, "bytes"), (flip, "SHA-256"), (Path.unlink, "missing"), (lock, "Permission denied"))
] + [("manifest.json", lambda p: p.write_text(p.read_text()[:40]), "JSON"), ("manifest.json", lie, "of step 21"),
     ("manifest.json", Path.unlink, "no such file"), ("manifest.json", lock, "Permission denied")]  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "word"), DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, capsys, monkeypatch, name, damage, word):
    write(tmp_path, 10, 20)
    path, real = tmp_path / "step_00000020" / name, builtins.open

    def guarded(file, *args, **more):
        if str(file) in locked:
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *args, **more)

    monkeypatch.setattr(builtins, "open", guarded)
    monkeypatch.setattr("io.open", guarded)
    damage(path)
    assert checkpoint.latest(tmp_path).step == 10
    said = capsys.readouterr().err
    assert str(path) in said and "step_00000010 is used instead" in said and word in said
    assert said.count("\n") == 1
    flip(tmp_path / "step_00000010" / "weights.safetensors")
    with pytest.raises(UserError, match="step_00000020.*step_00000010.*remove it"):
        checkpoint.latest(tmp_path)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("changes", [{}, {"files": "of another form"}])
def test_a_newer_program_wrote_it_is_said_and_nothing_older_takes_its_place(tmp_path, changes):
    write(tmp_path, 10, 20)
    edit(tmp_path / "step_00000020" / "manifest.json", version=7, **changes)
    with pytest.raises(UserError, match=r"step_00000020.*version 7 .* reads 1"):
        checkpoint.latest(tmp_path)


FORMS = [{"version": 0}, {"version": "1"}, {"version": None}, {"files": {}}, {"files": []}, {"step": "20"}]
FORMS += [{"step": None}, {"metric": "low"}, {"files": {"../../position.json": {"bytes": 1, "sha256": "0"}}}, [1]]


@pytest.mark.parametrize("form", FORMS)
def test_a_manifest_of_another_form_is_damage(tmp_path, capsys, form):
    write(tmp_path, 10, 20)
    path = tmp_path / "step_00000020" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | form if isinstance(form, dict) else form))
    assert checkpoint.latest(tmp_path).step == 10
    assert str(path) in capsys.readouterr().err


def test_a_manifest_cannot_name_a_file_outside(tmp_path, capsys):
    write(tmp_path, 10, 20)
    path = tmp_path / "step_00000020" / "manifest.json"
    secret = tmp_path / "secret"
    secret.write_text("x")
    entry = {"bytes": 1, "sha256": files.sha256_file(secret)}
    edit(path, files=json.loads(path.read_text())["files"] | {"../secret": entry})
    assert checkpoint.latest(tmp_path).step == 10
    assert "points outside this folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["weights.safetensors", None])
def test_a_link_out_of_the_folder_is_not_followed(tmp_path, capsys, name):
    folder, outside = tmp_path / "checkpoints", tmp_path / "outside"
    write(folder, 10, 20)
    path = folder / "step_00000020"
    path = path / name if name else path
    path.rename(outside)
    path.symlink_to(outside)
    assert checkpoint.latest(folder).step == 10
    assert "points outside this folder" in capsys.readouterr().err
    write(folder, 20)  # the link goes away, what it pointed to stays
    assert checkpoint.latest(folder).step == 20 and outside.exists() and not path.is_symlink()


def test_what_else_lies_there_does_not_matter(tmp_path, capsys):
    write(tmp_path, 10, 20)
    (tmp_path / "step_00000020" / "notes.txt").write_text("mine")
    (tmp_path / "step_00000099").write_text("a file")
    for name in ("step_1", "step_00000030.bak", "steps", "step_0000003x"):
        (tmp_path / name).mkdir()
    assert checkpoint.latest(tmp_path).step == 20
    assert capsys.readouterr().err == ""
    write(tmp_path, 30, keep=1)
    assert (tmp_path / "step_00000030.bak").is_dir() and (tmp_path / "step_00000099").is_file()


NOWHERE = [b"", b"garbage", b"\xff\xfe", b"../../etc", b"step_00000020/../step_00000010", b"step_00000015\n"]


@pytest.mark.parametrize("content", NOWHERE)
def test_a_pointer_that_points_nowhere_is_told_and_the_newest_used(tmp_path, capsys, content):
    write(tmp_path, 10, 20)
    (tmp_path / "LATEST").write_bytes(content)
    assert checkpoint.latest(tmp_path).step == 20
    error = capsys.readouterr().err
    assert "LATEST: " in error and "step_00000020 is used instead" in error
    write(tmp_path, 30)
    assert checkpoint.latest(tmp_path).step == 30


def test_a_pointer_without_any_checkpoint_is_no_fresh_start(tmp_path):
    write(tmp_path, 10)
    shutil.rmtree(tmp_path / "step_00000010")
    with pytest.raises(UserError, match="LATEST: names step_00000010, which is not there.*remove it"):
        checkpoint.latest(tmp_path)


def test_a_folder_that_was_never_published_is_not_used(tmp_path):
    write(tmp_path, 10, 20)
    shutil.copytree(tmp_path / "step_00000020", tmp_path / "step_00000030")
    assert checkpoint.latest(tmp_path).step == 20
    (tmp_path / "LATEST").write_text("garbage")
    shutil.rmtree(tmp_path / "step_00000030")
    assert checkpoint.latest(tmp_path).step == 20


def test_a_damaged_best_one_is_reported(tmp_path, capsys):
    write(tmp_path, 1, metric=1.0)
    write(tmp_path, 2, metric=2.0)
    truncate(tmp_path / "step_00000001" / "weights.safetensors")
    assert checkpoint.selected(tmp_path, "best").step == 2
    assert "step_00000001" in capsys.readouterr().err


def test_a_plain_safetensors_file_is_read_as_float32(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.ones(3, np.float16)}, tmp_path / "x.safetensors")
    assert checkpoint.read_weights(tmp_path / "x.safetensors")["x"].dtype == np.float32
    save_file({"x": np.ones(3, np.int64)}, tmp_path / "y.safetensors")
    (tmp_path / "z.safetensors").write_bytes(b"no tensors at all")
    for name, words in (("y", "y.safetensors.*'x' is int64.*float32"), ("z", "z.*float32"), ("absent", "absent")):
        with pytest.raises(UserError, match=words):
            checkpoint.read_weights(tmp_path / f"{name}.safetensors")


def test_weights_of_another_shape_are_refused_in_one_message(ms_runtime):
    import mindspore as ms
    from mindspore import nn

    class Model(nn.Cell):
        def __init__(self):
            super().__init__()
            self.a = ms.Parameter(ms.Tensor(np.zeros((2, 3), np.float32)), name="a")
            self.b = ms.Parameter(ms.Tensor(np.zeros(4, np.float32)), name="b")

    model = Model()
    good = {"a": np.ones((2, 3), np.float32), "b": np.arange(4, dtype=np.float32)}
    checkpoint.load_into(model, good, "here")
    for name, array in checkpoint.weights_of(model).items():
        np.testing.assert_array_equal(array, good[name])
    for bad, message in (
        (good | {"a": np.ones((2, 5), np.float32)}, r"here: 'a' has shape \[2, 5\].*\[2, 3\]"),
        ({"a": good["a"]}, r"here: the parameter 'b' \[4\] of the model is not in it; choose"),
        (good | {"c": good["b"]}, r"here: 'c' \[4\]"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoint.load_into(model, bad, "here")
    np.testing.assert_array_equal(checkpoint.weights_of(model)["b"], good["b"])  # nothing was half loaded
