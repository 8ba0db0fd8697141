"""The distillation benchmark compares equal work: same losses, same gradient, same captured ids."""

import json

import numpy as np
import pytest

from mindspore_impl import speed
from mindspore_impl.ops import native
from mindspore_impl.speed import topk_distill

pytestmark = pytest.mark.skipif(native.builder().compiler() is None, reason="no C++ compiler")
VOCAB = 640


def outcome(step):
    ce_N, kd_N, _, grad_NV = step()
    return np.array(ce_N), np.array(kd_N), grad_NV.numpy() if hasattr(grad_NV, "numpy") else grad_NV.asnumpy()


def test_mindspore_backends_do_the_same(ms_runtime):
    given = topk_distill.inputs(5, VOCAB)
    before_NV = given["logits_NV"].copy()
    for a, b in zip(*(outcome(build(given)) for build in (topk_distill.ours, topk_distill.composed)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(given["logits_NV"], before_NV)


@pytest.mark.slow
def test_torch_does_the_same(ms_runtime):
    given = topk_distill.inputs(5, VOCAB)
    for peer in list(topk_distill.SIDES.values())[2:]:
        for a, b in zip(outcome(topk_distill.ours(given)), outcome(peer(given)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    captured, theirs = topk_distill.capture(given)(), topk_distill.torch_capture(given)()
    for a, b in zip(captured, theirs, strict=True):
        np.testing.assert_allclose(a, np.array(b), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_every_row_of_the_table(ms_runtime, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    speed.run("topk_distill", tmp_path / "out.json", rows=4, vocab=VOCAB)
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [row["metric"] for row in rows].count("extra memory") == 3 and rows[-1]["metric"] == "capture of the top K"
    assert all(row["ratio"] is not None and row["source"] == "measured" for row in rows)
    assert "scaling them in place" in capsys.readouterr().out
