"""Checkpoints: what is written comes back bit for bit, and what is damaged is never used."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mindspore_impl import checkpoint, files
from mindspore_impl.checkpoint import saving
from mindspore_impl.errors import UserError

FILES = ("weights.safetensors", "optimizer.safetensors", "position.json", "manifest.json")


def arrays(step):
    draw = np.random.default_rng(step)
    weights = {name: draw.normal(size=(3, 4)).astype(np.float32) for name in ("b.weight", "a.weight")}
    return weights, {"adam_m.a.weight": weights["a.weight"] / 3, "global_step": np.array([step], np.int32)}


def write(folder, *steps, keep=10, metric=None):
    for step in steps:
        checkpoint.save(folder, step, *arrays(step), {"step": step}, keep, metric)


def numbered(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_what_is_saved_comes_back(tmp_path):
    write(tmp_path, 20)
    found = checkpoint.latest(tmp_path)
    assert (found.path.name, found.step, found.position) == ("step_00000020", 20, {"step": 20})
    assert (tmp_path / "LATEST").read_text() == "step_00000020\n"
    weights, optimizer = arrays(20)
    for name, array in checkpoint.read_weights(found.path).items():
        np.testing.assert_array_equal(array, weights[name])
    for name, array in checkpoint.read_arrays(found.optimizer_path).items():
        np.testing.assert_array_equal(array, optimizer[name])
    assert found.weights_sha256 == files.sha256_file(found.weights_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert sorted(path.name for path in found.path.iterdir()) == sorted(FILES)


def test_bytes_do_not_depend_on_the_order_of_names(tmp_path):
    weights, optimizer = arrays(1)
    backwards = dict(reversed(weights.items()))
    first = checkpoint.save(tmp_path / "a", 1, weights, optimizer, {}, 1)
    second = checkpoint.save(tmp_path / "b", 1, backwards, optimizer, {}, 1)
    assert first.weights_sha256 == second.weights_sha256
    assert checkpoint.save(tmp_path / "c", 1, arrays(2)[0], optimizer, {}, 1).weights_sha256 != first.weights_sha256


def test_an_empty_folder_holds_none(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "absent") is None
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.selected(tmp_path, "last")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def lie(path):
    path.write_text(path.read_text().replace('"step": 20', '"step": 21'))


DAMAGES = [
    (name, damage, said)
    for name in FILES[:3]
    for damage, said in ((truncate, "bytes instead of"), (flip, "SHA-256 differs"), (Path.unlink, "is missing"))
] + [("manifest.json", lambda p: p.write_text(p.read_text()[:40]), "not valid JSON"),
     ("manifest.json", lie, "of step 21"), ("manifest.json", Path.unlink, "no such file")]  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "word"), DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, capsys, name, damage, word):
    write(tmp_path, 10, 20)
    path = tmp_path / "step_00000020" / name
    damage(path)
    found = checkpoint.latest(tmp_path)
    assert found.step == 10
    said = capsys.readouterr().err
    assert str(path) in said and "step_00000010 is used instead" in said
    assert word in said
    assert said.count("\n") == 1


def test_no_usable_checkpoint_is_an_error_not_a_fresh_start(tmp_path):
    write(tmp_path, 10, 20)
    for step in (10, 20):
        flip(tmp_path / f"step_000000{step}" / "weights.safetensors")
    with pytest.raises(UserError, match="no usable checkpoint.*step_00000020.*step_00000010.*remove it to start"):
        checkpoint.latest(tmp_path)


def test_a_folder_that_was_never_published_is_not_used(tmp_path):
    write(tmp_path, 10, 20)
    shutil.copytree(tmp_path / "step_00000020", tmp_path / "step_00000030")
    assert checkpoint.latest(tmp_path).step == 20
    (tmp_path / "LATEST").write_text("garbage")
    shutil.rmtree(tmp_path / "step_00000030")
    assert checkpoint.latest(tmp_path).step == 20


def test_a_killed_writer_leaves_the_old_one_in_force(tmp_path, monkeypatch):
    write(tmp_path, 10)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "_replace_folder", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 20)
    monkeypatch.undo()
    assert checkpoint.latest(tmp_path).step == 10
    left = tmp_path / ".step_00000020.abc.tmp"  # what kill -9 leaves
    left.mkdir()
    (left / "weights.safetensors").write_bytes(b"half")
    write(tmp_path, 20)
    assert numbered(tmp_path) == ["step_00000010", "step_00000020"]


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


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    write(tmp_path, 10)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_all", full)
    with pytest.raises(UserError, match="step_00000020.*No space left.*free some room"):
        write(tmp_path, 20)
    assert numbered(tmp_path) == ["step_00000010"]
    assert checkpoint.latest(tmp_path).step == 10


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step, metric in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None), (5, 1.5)):
        write(tmp_path, step, keep=2, metric=metric)
    assert numbered(tmp_path) == ["step_00000002", "step_00000004", "step_00000005"]
    assert checkpoint.selected(tmp_path, "best").step == 2
    assert checkpoint.selected(tmp_path, "last").step == 5


def test_a_damaged_best_one_is_reported(tmp_path, capsys):
    write(tmp_path, 1, metric=1.0)
    write(tmp_path, 2, metric=2.0)
    truncate(tmp_path / "step_00000001" / "weights.safetensors")
    assert checkpoint.selected(tmp_path, "best").step == 2
    assert "step_00000001" in capsys.readouterr().err


def test_best_without_validation_is_an_error(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(UserError, match="select=last"):
        checkpoint.selected(tmp_path, "best")


def test_a_step_can_be_written_again(tmp_path):
    write(tmp_path, 1, 2)
    checkpoint.save(tmp_path, 2, *arrays(7), {"step": 2, "again": True}, 2)
    assert checkpoint.latest(tmp_path).position["again"]


def test_a_plain_safetensors_file_is_read_as_float32(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.ones(3, np.float16)}, tmp_path / "x.safetensors")
    assert checkpoint.read_weights(tmp_path / "x.safetensors")["x"].dtype == np.float32
    save_file({"x": np.ones(3, np.int64)}, tmp_path / "y.safetensors")
    with pytest.raises(UserError, match="y.safetensors.*'x' is int64.*store the weights as float32 safetensors first"):
        checkpoint.read_weights(tmp_path / "y.safetensors")
    (tmp_path / "z.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(UserError, match="z.safetensors.*store the weights as float32 safetensors first"):
        checkpoint.read_weights(tmp_path / "z.safetensors")
    with pytest.raises(UserError, match="no such file"):
        checkpoint.read_weights(tmp_path / "absent.safetensors")


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
        (good | {"a": np.ones((2, 5), np.float32)}, r"here: 'a' has shape \[2, 5\] there and \[2, 3\] in the model"),
        ({"a": good["a"]}, r"here: the parameter 'b' \[4\] of the model is not in it; choose"),
        (good | {"c": good["b"]}, r"here: it holds 'c' \[4\] that the model does not have \(1 such in all\); choose"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoint.load_into(model, bad, "here")
    np.testing.assert_array_equal(checkpoint.weights_of(model)["b"], good["b"])  # nothing was half loaded
