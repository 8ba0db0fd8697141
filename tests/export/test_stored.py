"""The weights file of a package: what is in it, in which form, and what is refused."""

import numpy as np
import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.export import stored
from mindspore_impl.ops.rotary import rotary_table
from tests.model.small_models import small_options

SLOTS = 8


def values_of(options):
    from mindspore_impl.model.pangu import parameter_shapes

    generator = np.random.default_rng(0)
    return {name: generator.standard_normal(s).astype(np.float32) for name, s in parameter_shapes(options).items()}


def written(tmp_path, precision, **changes):
    options = small_options(**changes)
    values = values_of(options)
    path = tmp_path / "weights.safetensors"
    stored.write_weights(path, options, precision, SLOTS, values.__getitem__)
    stored.check_weights(path, stored.stored_tensors(options, precision, SLOTS))
    return options, values, dict(stored.read_weights(path))


@pytest.mark.parametrize("tied", [True, False])
def test_fp32_keeps_every_bit(tmp_path, tied):
    _, values, found = written(tmp_path, "fp32", tie_word_embeddings=tied)
    assert set(found) == set(values) | {"rotary.cos", "rotary.sin"}
    for name, value in values.items():
        np.testing.assert_array_equal(found[name], value)


def test_fp16_rounds_all_but_norms_and_tables(tmp_path):
    _, values, found = written(tmp_path, "fp16")
    for name, value in values.items():
        wanted = np.float32 if name.endswith("norm.weight") else np.float16
        assert found[name].dtype == wanted
        np.testing.assert_array_equal(found[name], value.astype(wanted))
    assert found["rotary.cos"].dtype == np.float32


def test_int8_holds_the_projections_of_the_layers_alone(tmp_path):
    _, values, found = written(tmp_path, "int8", tie_word_embeddings=False)
    names = {name for name, array in found.items() if array.dtype == np.int8}
    assert names == {name for name in values if name.endswith("_proj.weight")}
    assert found["lm_head.weight"].dtype == found["model.embed_tokens.weight"].dtype == np.float16
    for name in names:
        scale_O1 = found[stored.scale_name(name)]
        assert np.abs(found[name] * scale_O1 - values[name]).max() <= scale_O1.max() * 0.5001


def test_tables_swap_halves_with_a_sign(tmp_path):
    options, _, found = written(tmp_path, "fp32")
    cos_TC, sin_TC = rotary_table(6, options.rope_theta, SLOTS)
    np.testing.assert_array_equal(found["rotary.cos"], cos_TC)
    np.testing.assert_array_equal(found["rotary.sin"], np.concatenate([-sin_TC[:, :3], sin_TC[:, 3:]], 1))


def test_a_weight_beyond_float16_is_named(tmp_path):
    options = small_options()
    values = values_of(options)
    values["model.layers.1.mlp.up_proj.weight"][0, 0] = 7e4
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight: holds 70000, too large for float16"):
        stored.write_weights(tmp_path / "w.safetensors", options, "fp16", SLOTS, values.__getitem__)
    assert not (tmp_path / "w.safetensors").exists()


def test_foreign_weights_are_named(tmp_path):
    written(tmp_path, "fp32")
    wanted = stored.stored_tensors(small_options(qkv_bias=False), "fp32", SLOTS)
    with pytest.raises(UserError, match=r"k_proj\.bias' is float32 \[12\] there, .* needs absent"):
        stored.check_weights(tmp_path / "weights.safetensors", wanted)


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0[]"])
def test_what_is_no_weights_file_is_refused(tmp_path, content):
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(UserError, match="not the weights of a package"):
        stored.check_weights(tmp_path / "w", {})
