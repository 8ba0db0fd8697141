"""The tiling function that host, kernel and tests share, and the host side that calls it.

CANN's host headers are replaced by those of cann_host/, which hold the declarations that op_host uses.
"""

import ctypes
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.kernel_calls import ROOT, emulated

HERE = Path(__file__).parent
UB_BYTES = emulated.emulate.UB_BYTES
VOCAB = 153_376  # of openPangu-Embedded-1B
FLOAT, HALF, BFLOAT16 = 0, 1, 27  # CANN's numbers


def problem(**changes) -> emulated.Problem:
    values = {
        "rows": 4096, "vocab": VOCAB, "topK": 64, "logitBytes": 2, "cores": 48, "ubBytes": UB_BYTES, "ceWeight": 0.5,
        "kdWeight": 0.5, "temperature": 1.0, "divergence": 0, "support": 0, "writeGradient": True, "split": 0,
        "maxTile": 0,
    }  # fmt: skip
    return emulated.Problem(**(values | changes))


def needed_bytes(tiling: emulated.Tiling, logit_bytes: int) -> int:
    return emulated.tiling_library().topk_distill_needed_bytes(ctypes.byref(tiling), logit_bytes)


def check_tiling(asked: emulated.Problem, tiling: emulated.Tiling) -> None:
    """What the kernel takes for granted."""
    assert needed_bytes(tiling, asked.logitBytes) <= asked.ubBytes - 8 * 1024
    assert 256 <= tiling.tile <= 255 * 64 and tiling.tile % 256 == 0
    assert tiling.lanes >= asked.topK + 1 and tiling.lanes % 8 == 0
    assert tiling.split in (1, 2) and tiling.cores % tiling.split == 0
    assert tiling.split <= tiling.cores <= max(asked.cores, 1)
    assert tiling.cores // tiling.split <= max(asked.rows, 1)
    assert tiling.span * tiling.split >= asked.vocab > tiling.span * (tiling.split - 1)
    if tiling.split == 2:  # the kernel counts on a slot for every tile, even of a row that starts with a short one
        assert tiling.slots * tiling.tile >= tiling.span + 255 and tiling.span % 256 == 0
        assert asked.logitBytes == 2 and asked.temperature == 1 and asked.writeGradient


@settings(max_examples=400, deadline=None)
@given(
    rows=st.integers(0, 10**6),
    vocab=st.one_of(st.integers(1, 3000), st.integers(3000, 2**24 - 1)),
    topK=st.integers(1, 128),
    logitBytes=st.sampled_from([2, 4]),
    cores=st.integers(1, 64),
    ubBytes=st.sampled_from([64, 96, 128, 192, 248, 256]).map(lambda kilobytes: kilobytes * 1024),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    writeGradient=st.booleans(),
    split=st.sampled_from([0, 0, 1, 2]),
    maxTile=st.sampled_from([0, 0, 1, 256, 1000]),
)
def test_every_tiling_fits(**asked):
    asked = problem(**asked)
    try:
        tiling = emulated.make_tiling(asked)
    except ValueError as error:
        # Only two cores a row that were asked for may be impossible.
        assert asked.split == 2 and ("half a row" in str(error) or "two cores a row" in str(error))
        return
    check_tiling(asked, tiling)
    if asked.split:
        assert tiling.split == asked.split


@pytest.mark.parametrize("vocab", [2048, 2049, 5000, 32_000, VOCAB])
@pytest.mark.parametrize("largest", [0, 256, 1024])
def test_a_row_on_chip_has_room_for_a_short_first_tile(vocab, largest):
    asked = problem(vocab=vocab, split=2, maxTile=largest)
    if vocab == VOCAB and largest:  # more tiles than a ring has slots
        with pytest.raises(ValueError, match="half a row"):
            emulated.make_tiling(asked)
        return
    check_tiling(asked, emulated.make_tiling(asked))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": -1}, "rows"),
        ({"vocab": 0}, "vocabulary"),
        ({"vocab": 2**24}, "vocabulary"),
        ({"topK": 0}, "K must be"),
        ({"topK": 129}, "K must be"),
        ({"logitBytes": 1}, "float32, float16 or bfloat16"),
        ({"cores": 0}, "vector core"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"kdWeight": -1.0}, "kd_weight"),
        ({"divergence": 3}, "divergence"),
        ({"support": 4}, "support"),
        ({"support": 2, "divergence": 1}, "forward_kl only"),
        ({"ubBytes": 20 * 1024}, "too small"),
        ({"split": 2, "logitBytes": 4}, "16-bit"),
        ({"split": 2, "vocab": 400_000}, "half a row"),
    ],
)
def test_what_cannot_be_done_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        emulated.make_tiling(problem(**changes))


def test_the_model_on_an_atlas_a2():
    """At 153,376 columns: copies of 16 KB and more when a row is streamed, one row on two cores when it is kept."""
    chosen = emulated.make_tiling(problem())
    streamed = emulated.make_tiling(problem(split=1))
    assert (chosen.split, chosen.cores) == (2, 48)
    assert streamed.cores == 48 and streamed.tile * 2 >= 16 * 1024
    assert emulated.make_tiling(problem(rows=5)).split == 1  # too few rows to keep all cores busy in pairs
    otherwise = {"logitBytes": 4, "temperature": 2.0, "writeGradient": False, "cores": 1, "vocab": 20_000}
    for name, value in otherwise.items():
        assert emulated.make_tiling(problem(**{name: value})).split == 1, name


# ---- the host side ----


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("host") / "host.so"
    include = HERE / "cann_host"
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{include}"]
    subprocess.run([*command, str(include / "host_probe.cpp"), "-o", str(library)], check=True)
    code = ctypes.CDLL(str(library))
    code.host_prototype.restype = ctypes.c_char_p
    return code


def host_tiling(host, rows, vocab, top_k, dtype, weights=(0.5, 0.5, 1.0), ids_rows=None, gradient=True, support=0):
    tiling, launch = emulated.Tiling(), (ctypes.c_uint64 * 3)()
    failed = host.host_tiling(
        *(ctypes.c_int64(n) for n in (rows, vocab, top_k, rows if ids_rows is None else ids_rows)), dtype,
        (ctypes.c_float * 3)(*weights), ctypes.c_int64(0), ctypes.c_int64(support), ctypes.c_bool(gradient),
        ctypes.c_int64(0), ctypes.byref(tiling), launch,
    )  # fmt: skip
    return None if failed else (bytes(tiling), *launch)


def test_the_prototype_is_the_contract(host):
    inputs, outputs, attributes, chips = (
        part.strip(",").split(",") for part in host.host_prototype().decode().split("|")
    )
    assert inputs == "logits target_ids teacher_ids teacher_logp teacher_tail_logp row_weight".split()
    assert outputs == "logits ce kd diagnostics".split()  # of the input's name: the gradient overwrites it
    assert attributes == [
        "ce_weight:f", "kd_weight:f", "temperature:f", "divergence:i", "support:i", "write_gradient:b", "cores_a_row:i",
    ]  # fmt: skip
    assert chips == ["ascend910b", "ascend910_93"]
    entry = (ROOT / "kernels/topk_distill_loss/op_kernel/topk_distill_loss.cpp").read_text(encoding="utf-8")
    order = [*inputs, "logits_ref", *outputs[1:], "workspace", "tiling"]
    places = [entry.index(f"GM_ADDR {name}") for name in order]
    assert places == sorted(places)


@pytest.mark.parametrize(("dtype", "size"), [(FLOAT, 4), (HALF, 2), (BFLOAT16, 2)])
def test_the_host_tiles_as_the_function_does(host, dtype, size):
    for changes in ({}, {"gradient": False}, {"weights": (0.5, 0.5, 2.0)}, {"support": 1}):
        data, blocks, schedule, workspace = host_tiling(host, 4096, VOCAB, 64, dtype, **changes)
        expected = emulated.make_tiling(
            problem(
                logitBytes=size, writeGradient=changes.get("gradient", True), support=changes.get("support", 0),
                temperature=changes.get("weights", (0, 0, 1.0))[2],
            )
        )  # fmt: skip
        assert data == bytes(expected) and blocks == expected.cores
        # Cores that wait for each other are scheduled all at once; their messages need workspace.
        assert schedule == (1 if expected.split == 2 else 0)
        assert workspace == 16 * 2**20 + emulated.tiling_library().topk_distill_workspace_bytes(ctypes.byref(expected))


def test_the_host_refuses_and_says_why(host, capfd):
    assert host_tiling(host, 8, 1000, 129, BFLOAT16) is None
    assert "TopkDistillLoss: K must be 1 to 128" in capfd.readouterr().err
    assert host_tiling(host, 8, 1000, 4, BFLOAT16, ids_rows=7) is None
    assert "teacher_ids must be [N, K]" in capfd.readouterr().err


def test_shapes_and_types_are_inferred(host):
    shapes, types = (ctypes.c_int64 * 16)(), (ctypes.c_int * 4)()
    host.host_infer(ctypes.c_int64(6), ctypes.c_int64(100), BFLOAT16, shapes, types)
    assert list(shapes)[:10] == [2, 6, 100, 1, 6, 1, 6, 2, 4, 6]
    assert list(types) == [BFLOAT16, FLOAT, FLOAT, FLOAT]


# ---- the package ----


def test_the_build_collects_the_operator(tmp_path):
    """With a toolkit whose template only lists what it was given."""
    template = tmp_path / "cann" / "tools" / "op_project_templates" / "ascendc" / "customize"
    for name in ("op_host", "op_kernel"):
        (template / name).mkdir(parents=True)
        (template / name / "add_custom.cpp").write_text("a sample\n")
    (template / "build.sh").write_text(
        "set -e\nmkdir build_out\n(ls op_host op_kernel; cat CMakePresets.json) > build_out/custom_opp_test.run\n"
    )
    command = ["bash", str(ROOT / "kernels" / "build.sh"), "--cann"]
    options = ["--out", str(tmp_path / "out"), "--soc", "ascend910_93", "--vendor", "mine"]
    subprocess.run([*command, str(tmp_path / "cann"), *options], check=True, capture_output=True)
    package = (tmp_path / "out" / "custom_opp_test.run").read_text()
    assert "add_custom" not in package
    assert '"value": "ascend910_93"' in package and '"value": "mine"' in package
    for path in (ROOT / "kernels" / "topk_distill_loss" / "op_kernel").iterdir():
        assert path.name in package
    missing = subprocess.run([*command, str(tmp_path / "none")], capture_output=True, text=True)
    assert missing.returncode == 2 and "no CANN toolkit" in missing.stderr
