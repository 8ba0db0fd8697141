"""Depth pruning: the layers that stay compute what they did, in their order; the command refuses what is not there."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspore_impl import checkpoint, files
from mindspore_impl.cli.convert_weights import import_weights
from mindspore_impl.cli.prune_depth import main, prune_depth
from mindspore_impl.errors import UserError
from mindspore_impl.model.pangu import parameter_shapes
from mindspore_impl.model.prune import evenly_spaced, keep_layers
from mindspore_impl.model.weights import open_hf
from tests.model.hf_folders import OPTIONS, tensors_of, write_folder

DEEP = dataclasses.replace(OPTIONS, num_hidden_layers=5)


def write_deep(folder):
    """A Hugging Face folder of five layers; -> its tensors."""
    return write_folder(folder, tensors_of(DEEP), num_hidden_layers=5)


@given(st.integers(2, 80).flatmap(lambda total: st.tuples(st.just(total), st.integers(2, total))))
def test_even_layers_hold_both_ends(sizes):
    total, keep = sizes
    layers = evenly_spaced(total, keep)
    assert len(layers) == keep and layers[0] == 0 and layers[-1] == total - 1
    gaps = np.diff(layers)
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


def test_half_of_smollm2():
    assert evenly_spaced(30, 15) == (0, 2, 4, 6, 8, 10, 12, 15, 17, 19, 21, 23, 25, 27, 29)


def test_pruned_layers_are_those_of_the_whole(tmp_path):
    """Layers 0, 2 and 3 of 5 under new numbers; everything outside the layers as it was."""
    tensors = write_deep(tmp_path)
    pruned = keep_layers(open_hf(tmp_path), (0, 2, 3))
    assert set(pruned.shapes) == set(parameter_shapes(pruned.options)) and pruned.options.num_hidden_layers == 3
    for name in pruned.shapes:
        before = name.replace("layers.2.", "layers.3.").replace("layers.1.", "layers.2.")
        np.testing.assert_array_equal(pruned.read(name), tensors[before], err_msg=name)


def test_keeping_every_layer_changes_no_byte(tmp_path):
    write_deep(tmp_path / "hf")
    import_weights(tmp_path / "hf", tmp_path / "whole")
    prune_depth(tmp_path / "whole", tmp_path / "again", keep=5)
    prune_depth(tmp_path / "hf", tmp_path / "direct", "0,1,2,3,4")
    paths = [checkpoint.latest(tmp_path / name).weights_path for name in ("whole", "again", "direct")]
    assert len({path.read_bytes() for path in paths}) == 1
    assert len({(path.parent / "config.json").read_bytes() for path in paths}) == 1


def test_the_pruned_checkpoint_describes_itself(tmp_path):
    tensors = write_deep(tmp_path / "hf")
    (tmp_path / "hf/tokenizer.json").write_text('{"a": 1}')
    line = prune_depth(tmp_path / "hf", tmp_path / "half")
    assert line.startswith("layers 0,2,4 of 5 -> ") and "parameters" in line
    source = checkpoint.open_weights(tmp_path / "half")
    assert source.options == dataclasses.replace(OPTIONS, num_hidden_layers=3)
    assert checkpoint.latest(tmp_path / "half").position["layers"] == [0, 2, 4]
    assert (tmp_path / "half/tokenizer.json").read_text() == '{"a": 1}'
    assert files.read_json(tmp_path / "half/step_00000000/config.json")["num_hidden_layers"] == 3
    for name in source.shapes:
        before = name.replace("layers.2.", "layers.4.").replace("layers.1.", "layers.2.")
        np.testing.assert_array_equal(source.read(name), tensors[before], err_msg=name)


def test_only_one_tensor_is_read_at_a_time(tmp_path):
    write_deep(tmp_path / "hf")
    source, read = open_hf(tmp_path / "hf"), []

    def note(name):
        read.append(name)
        return source.read(name)

    pruned = keep_layers(dataclasses.replace(source, read=note), (0, 3))
    assert read == []
    pruned.read("model.layers.1.mlp.up_proj.weight")
    assert read == ["model.layers.3.mlp.up_proj.weight"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "6"], "--keep: 6 is not between 2 and the model's 5"),
        (["--keep", "1"], "--keep: 1 is not between 2"),
        (["--layers", "0,5"], "--layers: 5 is not between 0 and 4"),
        (["--layers=-1,2"], "--layers: -1 is not between 0 and 4"),
        (["--layers", "0,2,2"], "--layers: 2 after 2; name each layer once, in increasing order"),
        (["--layers", "3,1"], "--layers: 1 after 3"),
        (["--layers", "0,x"], "--layers: '0,x' is no list of numbers"),
    ],
)
def test_refusals_are_one_message(tmp_path, capsys, arguments, message):
    write_deep(tmp_path / "hf")
    assert main([str(tmp_path / "hf"), str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]
    assert not (tmp_path / "out").exists()


def test_a_full_folder_and_unknown_weights_are_refused(tmp_path):
    write_deep(tmp_path / "hf")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="full: .*not an empty folder"):
        prune_depth(tmp_path / "hf", tmp_path / "full", keep=2)
    (tmp_path / "hf/config.json").unlink()
    with pytest.raises(UserError, match="says what model this is; name a checkpoint"):
        prune_depth(tmp_path / "hf/model.safetensors", tmp_path / "out", keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "hf"]
