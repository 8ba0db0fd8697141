"""Safetensors by hand: conversions exact to the bit, damaged files refused by name, what is written is what is read."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from mindspore_impl.errors import UserError
from mindspore_impl.model import tensor_file
from tests.model.hf_folders import values, write_safetensors


def test_every_bfloat16_comes_back():
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = tensor_file.from_bfloat16(bits)
    np.testing.assert_array_equal(tensor_file.to_bfloat16(wide), bits)
    assert wide[0x3F80] == 1.0 and wide[0xC040] == -3.0 and wide[0x7F80] == np.inf


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 0xFFFF), st.sampled_from([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])), min_size=1),
    st.lists(st.floats(width=32)),
)
def test_bfloat16_is_the_nearest_ties_to_even(halves, numbers):
    """Floats by their upper and lower halves, so that ties are met, and any floats."""
    bits = np.array([upper << 16 | lower for upper, lower in [*halves, (0x7FFF, 0xFFFF), (0xFF80, 1)]], np.uint32)
    given = np.concatenate([bits.view(np.float32), np.array(numbers, np.float32)])
    stored = tensor_file.to_bfloat16(given)
    for number, bits in zip(given, stored, strict=True):
        if np.isnan(number):
            assert np.isnan(tensor_file.from_bfloat16(np.array([bits])))[0]
            continue
        down = np.array([number]).view(np.uint32)[0] >> 16  # towards zero
        low, high = (float(tensor_file.from_bfloat16(np.array([b], np.uint16))[0]) for b in (down, down + 1))
        high = np.copysign(2.0**128, low) if np.isinf(high) else high  # where the next value would be
        below, above = abs(float(number) - low), abs(high - float(number))
        wanted = down if below < above or (below == above and down % 2 == 0) else down + 1
        assert bits == (down if np.isinf(number) else wanted)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_file_comes_back_in_small_blocks(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(tensor_file, "BLOCK", 7)
    tensors = {"b": values((5, 9), 0), "a": values((3,), 1), "empty": values((0, 4), 2), "one": values((), 3)}
    shapes = {name: array.shape for name, array in tensors.items()}
    tensor_file.write_file(tmp_path / "x.safetensors", shapes, dtype, iter(tensors.items()))
    header = tensor_file.read_header(tmp_path / "x.safetensors")
    assert list(header) == list(shapes)
    for name, info in header.items():
        found = tensor_file.read_tensor(name, info)
        assert found.dtype == np.float32 and info.dtype == dtype
        np.testing.assert_array_equal(found, tensors[name])


def test_the_library_reads_what_is_written(tmp_path):
    array = values((4, 6), 0)
    tensor_file.write_file(tmp_path / "x.safetensors", {"ä": (4, 6)}, "F16", iter([("ä", array)]))
    np.testing.assert_array_equal(load_file(tmp_path / "x.safetensors")["ä"], array.astype(np.float16))
    assert int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little") % 8 == 0


def test_a_stream_in_another_order_is_a_fault(tmp_path):
    stream = iter([("b", values((2,), 0)), ("a", values((3,), 1))])
    with pytest.raises(ValueError, match="b .* came instead of a"):
        tensor_file.write_file(tmp_path / "x.safetensors", {"a": (3,), "b": (2,)}, "F32", stream)


@pytest.mark.parametrize(("dtype", "value"), [("F16", 65520.0), ("F16", -7e4), ("BF16", 3.4e38)])
def test_a_value_too_large_is_refused_by_name(dtype, value):
    array = np.array([1.0, value], np.float32)
    with pytest.raises(UserError, match=f"'layer' holds .*, too large for {dtype}; choose a wider dtype"):
        tensor_file.narrow("layer", array, dtype)
    tensor_file.narrow("layer", array * np.float32(0.9), dtype)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_values_no_model_can_use_are_refused(tmp_path, dtype, value):
    array = values((8,), 0)
    array[5] = value
    write_safetensors(tmp_path / "x.safetensors", {"w": array}, dtype)
    info = tensor_file.read_header(tmp_path / "x.safetensors")["w"]
    with pytest.raises(UserError, match="x.safetensors: 'w' holds NaN or infinity"):
        tensor_file.read_tensor("w", info)


def _with(**changes):
    return lambda header: {**header, "b": {**header["b"], **changes}}


@pytest.mark.parametrize(
    "spoil",
    [
        _with(dtype=None),
        _with(shape=[7]),
        _with(shape=[-2, -3]),
        _with(shape=[True, 6]),
        _with(shape=6),
        _with(data_offsets=[8, 20]),
        _with(data_offsets=[1000, 1012]),
        _with(data_offsets=[22, 10]),
        _with(data_offsets=[10]),
        lambda header: {**header, "b": 3},
        lambda header: {"a": header["a"]},
        lambda header: b'{"a": ',
        lambda header: b"\xff\xfe",
        lambda header: b"[" * 100_000,
        lambda header: b"[]",
    ],
)
def test_a_damaged_header_is_refused_by_name(tmp_path, spoil):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": values((5,), 0), "b": values((6,), 1)}, "BF16", spoil)
    with pytest.raises(UserError, match="x.safetensors: .*copy or download"):
        tensor_file.read_header(path)


@pytest.mark.parametrize(("dtype", "shape"), [("I8", [12]), ("I16", [6]), ("F64", [1])])
def test_another_dtype_is_refused_by_name(tmp_path, dtype, shape):
    path = tmp_path / "x.safetensors"
    offsets = [10, 10 + {"F64": 8}.get(dtype, 12)]
    spoil = _with(dtype=dtype, shape=shape, data_offsets=offsets)
    write_safetensors(path, {"a": values((5,), 0), "b": values(((offsets[1] - 10) // 2,), 1)}, "BF16", spoil)
    with pytest.raises(UserError, match=f"x.safetensors: 'b' has the dtype {dtype}; only BF16, F16, F32"):
        tensor_file.read_header(path)


def test_a_truncated_file_is_refused_at_any_length(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": values((5,), 0), "b": values((6,), 1)})
    whole = path.read_bytes()
    for content in (*(whole[:size] for size in range(len(whole))), whole + b"x", (1 << 62).to_bytes(8, "little")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"x.safetensors: .*{len(content)} bytes"):
            tensor_file.read_header(path)


def test_a_file_cut_while_it_is_read_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": values((5,), 0)})
    info = tensor_file.read_header(path)["a"]
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match="cut off inside 'a'"):
        tensor_file.read_tensor("a", info)
