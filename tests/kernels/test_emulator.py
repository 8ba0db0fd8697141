"""The host emulator: right kernels run and are counted, and a wrong kernel for every rule is stopped by that rule."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.kernels.kernel_calls import emulate

KERNELS = Path(__file__).parent / "emulator_kernels"


@pytest.fixture(scope="session")
def rules():
    return emulate.build(KERNELS / "rules.cpp")


def run(library, name, cores=1, x=None):
    """Run a rule kernel; returns (y, w, counters)."""
    x = np.linspace(-3, 3, 4096).astype(np.float32) if x is None else x
    y, w = np.zeros(4096, np.float32), np.zeros(1024, np.int32)
    counters = emulate.run(library, name, [("x", x), ("y", y), ("w", w)], cores=cores)
    return y, w, counters


# ---- right kernels ----


@pytest.mark.parametrize("cores", [1, 3])
def test_a_tiled_kernel_with_a_ragged_tail(rules, cores):
    y, _, counters = run(rules, "add_one", cores)
    x = np.linspace(-3, 3, 4096).astype(np.float32)
    np.testing.assert_array_equal(y[:4093], x[:4093] + 1)
    assert not y[4093:].any()
    total = counters["total"]
    assert total["gm"]["x"] == {"read_bytes": 4093 * 4, "read_copies": 16 if cores == 1 else 18, "write_copies": 0,
                                "written_bytes": 0}  # fmt: skip
    assert total["gm"]["y"]["written_bytes"] == 4093 * 4
    # A share of 4093 floats is cut into tiles of four repeats; what is left takes a repeat for every 64 begun.
    shares = [4093] if cores == 1 else [1365, 1365, 1363]
    assert total["repeats"] == {"Adds": sum(4 * (n // 256) + -(-(n % 256) // 64) for n in shares)}
    assert len(counters["cores"]) == cores and total["ub_high_water"] == 3 * 4096


def test_cores_hand_over_through_global_memory(rules):
    y, _, counters = run(rules, "relay_hard", 2)
    assert (y[:128] == 3).all()
    assert counters["cores"][1]["gm"]["y"] == {
        "read_bytes": 256, "read_copies": 1, "write_copies": 1, "written_bytes": 256
    }  # fmt: skip
    assert sum(counters["total"]["sync"].values()) >= 2


def test_a_repeat_stride_of_zero_accumulates(rules):
    assert (run(rules, "accumulate")[0][:64] == 16).all()


def test_runs_are_deterministic(rules):
    x = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    first, second = run(rules, "add_one", 7, x), run(rules, "add_one", 7, x)
    np.testing.assert_array_equal(first[0], second[0])
    assert first[2] == second[2]


# ---- rules: kernel, cores, rule, what the message must say ----

RULES = [
    ("ub_overrun", 1, "ub-overrun", "Adds: dst needs bytes 0 to 2052 of a tensor of 2048 bytes in TBuf 0"),
    ("ub_overrun_strided", 1, "ub-overrun", "of a tensor of 4096 bytes"),
    ("ub_overrun_scalar", 1, "ub-overrun", "SetValue: index"),
    ("ub_overrun_copy", 1, "ub-overrun", "DataCopyPad: dst"),
    ("gm_overrun", 1, "gm-overrun", "DataCopy touches bytes 0 to 4096 of a view of 2048 bytes in x"),
    ("gm_overrun_view", 1, "gm-overrun", "of a view of 400 bytes"),
    ("ub_misaligned", 1, "ub-misaligned", "Adds: dst starts at UB byte 16"),
    ("ub_misaligned_copy", 1, "ub-misaligned", "DataCopyPad: dst"),
    ("ub_misaligned_reduce", 1, "ub-misaligned", "not a multiple of 8"),
    ("copy_length", 1, "copy-length", "36 bytes"),
    ("ub_overflow", 1, "ub-overflow", "of 188416 bytes are taken"),
    ("uninitialised", 1, "uninitialised", "Adds reads UB byte 4096"),
    ("uninitialised_padding", 1, "uninitialised", "offset 20"),
    ("operand_overlap", 1, "operand-overlap", "Adds"),
    ("operand_overlap_cast", 1, "operand-overlap", "Cast"),
    ("wait_without_set", 1, "wait-without-set", "WaitFlag<MTE2_V>(3)"),
    ("flag_never_waited", 1, "flag-never-waited", "SetFlag<V_MTE3>(3)"),
    ("event_id", 1, "event-id", "SetFlag<V_S>(8)"),
    ("event_reused", 1, "event-reused", "SetFlag<V_S>(1)"),
    ("get_after_vector", 1, "missing-sync", "GetValue (S) reads UB bytes 0 to 32 of TBuf 0, which Duplicate (V) wrote"),
    ("get_after_copy", 1, "missing-sync", "no MTE2_S event"),
    ("set_after_vector_read", 1, "missing-sync", "SetValue (S) overwrites UB bytes 4096 to 4128 of TBuf 1"),
    ("vector_after_set", 1, "missing-sync", "no S_V event"),
    ("vector_after_copy", 1, "missing-sync", "no MTE2_V event"),
    ("copy_out_after_vector", 1, "missing-sync", "no V_MTE3 event"),
    ("copy_out_after_copy_in", 1, "missing-sync", "no MTE2_MTE3 event"),
    ("copy_out_after_set", 1, "missing-sync", "no S_MTE3 event"),
    ("copy_in_over_vector_read", 1, "missing-sync", "which Adds (V) reads: no V_MTE2 event"),
    ("copy_in_over_copy_out", 1, "missing-sync", "which DataCopy (MTE3) reads: no MTE3_MTE2 event"),
    ("vector_over_copy_out", 1, "missing-sync", "which DataCopy (MTE3) reads: no MTE3_V event"),
    ("event_of_another_time", 1, "missing-sync", "no MTE2_V event"),
    ("vector_after_vector", 1, "missing-barrier", "PipeBarrier<PIPE_V>"),
    ("vector_over_vector", 1, "missing-barrier", "PipeBarrier<PIPE_V>"),
    ("copy_over_copy", 1, "missing-barrier", "PipeBarrier<PIPE_MTE2>"),
    ("copy_out_over_copy_out", 1, "missing-barrier", "overwrites byte 128 of y"),
    ("copy_in_after_copy_out", 1, "missing-sync", "no MTE3_MTE2 event"),
    ("repeat_range", 1, "repeat-range", "Adds repeats 256 times"),
    ("repeat_range_reduce", 1, "repeat-range", "WholeReduceSum repeats 256 times"),
    ("mask_range", 1, "mask-range", "mask 65"),
    ("mask_range_bits", 1, "mask-range", "mask[1]"),
    ("cast_mode", 1, "cast-mode", "mode 0"),
    ("pad_range", 1, "pad-range", "more than 32 bytes"),
    ("copy_range", 1, "copy-range", "4096 bursts"),
    ("race_write_write", 2, "gm-race", "overwrites byte 128 of y, which core 0 (MTE3) wrote"),
    ("race_read_write", 2, "gm-race", "core 1: DataCopy (MTE2) reads byte 0 of y, which core 0 (MTE3) wrote"),
    ("race_write_read", 2, "gm-race", "overwrites byte 0 of y, which core 0 (MTE2) reads"),
    ("deadlock_sync", 2, "deadlock", "core 0 waits in SyncAll of 2 cores; core 1 has ended"),
    ("kernel_type", 2, "kernel-type", "KERNEL_TYPE_MIX_AIV_1_0"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "cores", "rule", "says"), RULES, ids=[row[0] for row in RULES])
def test_a_wrong_kernel_is_stopped(rules, name, cores, rule, says):
    with pytest.raises(emulate.EmulatorError) as caught:
        run(rules, name, cores)
    message = str(caught.value)
    assert caught.value.rule == rule and says in message
    assert "\n" not in message


def test_the_message_names_the_kernels_own_line(rules):
    with pytest.raises(emulate.EmulatorError) as caught:
        run(rules, "ub_overrun")
    line = (KERNELS / "rules.cpp").read_text().partition("(ub_overrun,")[0].count("\n") + 1
    assert str(caught.value).endswith(f"(rules.cpp:{line})")


def test_every_wrong_kernel_is_listed():
    source = (KERNELS / "rules.cpp").read_text()
    wrong = source[source.index("// ---- memory ----") : source.index("// ---- numbers ----")]
    assert set(re.findall(r"^KERNEL\((\w+),", wrong, re.M)) == {row[0] for row in RULES}


@pytest.fixture(scope="module")
def refusals():
    with pytest.raises(emulate.EmulatorError) as caught:
        emulate.build(KERNELS / "refused.cpp")
    assert caught.value.rule == "compile"
    return caught.value.details


REFUSED = [
    n for n, text in enumerate((KERNELS / "refused.cpp").read_text().splitlines(), 1) if text.endswith("// refused")
]


@pytest.mark.parametrize("line", REFUSED)
def test_what_the_headers_refuse_does_not_compile(refusals, line):
    assert re.search(rf"refused\.cpp:{line}:\d+:", refusals)


# ---- numbers ----


def floats(seed, scale=3.0):
    return (scale * np.random.default_rng(seed).standard_normal(4096)).astype(np.float32)


def test_reductions(rules):
    x = floats(1)
    y, _, counters = run(rules, "whole_reductions", x=x)
    tiles = x[:1024].reshape(16, 64)
    np.testing.assert_array_equal(y[0:32:2], tiles.max(1))
    np.testing.assert_array_equal(y[1:32:2].view(np.uint32), tiles.argmax(1))
    np.testing.assert_array_equal(y[32:48], tiles.max(1))
    tree = tiles.copy()
    while tree.shape[1] > 1:
        tree = tree[:, 0::2] + tree[:, 1::2]
    np.testing.assert_array_equal(y[48:64], tree[:, 0])
    assert y[64] == x[:50].min() and y[65:66].view(np.uint32) == x[:50].argmin()
    repeats = counters["total"]["repeats"]
    assert (repeats["WholeReduceMax"], repeats["WholeReduceSum"]) == (32, 16)


def test_casts_round_as_ieee_says(rules):
    x = floats(3, 30.0)
    x[:8] = [2049.0, 2051.0, 65519.0, 65520.0, 1e-7, 5.97e-8, -0.5, 1.5]  # ties, overflow and subnormals of half
    x[8:12] = np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0xBF808001], np.uint32).view(np.float32)  # ties of bf16
    y, _, _ = run(rules, "casts", x=x)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y.view(np.float16)[:512], x[:512].astype(np.float16))
    bits = x.view(np.uint32)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    np.testing.assert_array_equal(y.view(np.uint16)[512:1024], nearest[:512])
    np.testing.assert_array_equal(y.view(np.uint16)[1024:1280], (bits[:256] >> 16).astype(np.uint16))
    upwards = y.view(np.float16)[1280:1536].astype(np.float32)
    assert (upwards >= np.minimum(x[:256], np.inf)).all()
    down = np.nextafter(y.view(np.float16)[1280:1536], np.float16(-np.inf)).astype(np.float32)
    assert (down < x[:256]).all()


def test_masks_and_strides(rules):
    y, _, _ = run(rules, "masks")
    assert (y[1:128:2] == 2).all() and not y[0:128:2].any()
    rest = y[128:]
    assert (rest[:10] == 3).all() and (rest[32:42] == 3).all() and not rest[10:32].any() and not rest[42:128].any()


def test_bursts_gaps_and_padding(rules):
    x = floats(4)
    y, _, counters = run(rules, "copies", x=x)
    out = y.view(np.uint8)
    for burst in range(3):  # five floats, then a gap of three; a pad on the left, two on the right
        row = out[burst * 40 : burst * 40 + 32].copy().view(np.float32)
        np.testing.assert_array_equal(
            row, np.concatenate(([-1], x[burst * 8 : burst * 8 + 5], [-1, -1])).astype(np.float32)
        )
    assert counters["total"]["gm"]["x"] == {"read_bytes": 60, "read_copies": 1, "write_copies": 0, "written_bytes": 0}
    assert counters["total"]["gm"]["y"]["written_bytes"] == 96


def test_padding_fills_the_rest_of_its_block(rules):
    x = floats(5)
    y, _, _ = run(rules, "padding", x=x)
    np.testing.assert_array_equal(y[:9], [*x[:3], 7, 7, 7, 7, 7, 0])


def test_work_is_counted_by_the_widest_operand(rules):
    _, _, counters = run(rules, "work")
    total = counters["total"]
    assert total["repeats"] == {"Cast": 16, "Exp": 16, "Max": 8}  # 1000 floats, 1000 floats, 1000 int16
    assert total["calls"] == {"Cast": 1, "Exp": 1, "Max": 1}
    assert total["scalar"] == {"UB GetValue": 1}
    assert list(total["repeats"]) == sorted(total["repeats"])


# ---- building ----


def test_a_library_is_compiled_again_when_a_header_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(emulate, "RUNTIME", ())  # the cache alone is tested: nothing runs
    (tmp_path / "k.cpp").write_text('#include "k.h"\nint value = VALUE;\n')

    def build(value):
        (tmp_path / "k.h").write_text(f"#define VALUE {value}\n")
        product = emulate.build(tmp_path / "k.cpp", cache=tmp_path / "cache")
        return product, product.stat().st_mtime_ns

    first = build(3)
    assert build(4)[0] != first[0] and build(3) == first


def test_a_missing_kernel_and_wrong_tiling_are_named(rules):
    with pytest.raises(emulate.EmulatorError, match="'absent' is not in the library"):
        emulate.run(rules, "absent", [("x", np.zeros(8, np.float32))])
    with pytest.raises(emulate.EmulatorError, match="tiling-size: core 0: .* 8 bytes .* given 4"):
        emulate.run(rules, "tiled", [("y", np.zeros(64, np.float32)), ("tiling", b"\0\0\0\0")])


def test_tiling_data_reaches_the_kernel(rules):
    y = np.zeros(64, np.float32)
    tiling = np.array([5], np.uint32).tobytes() + np.array([2.5], np.float32).tobytes()
    counters = emulate.run(rules, "tiled", [("y", y), ("tiling", tiling)], cores=2)
    assert (y[:5] == 2.5).all() and not y[5:].any()
    assert counters["total"]["gm"]["tiling"]["read_bytes"] == 16
