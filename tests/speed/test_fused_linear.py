"""The benchmark of chunked projection and loss, at sizes of seconds."""

import json
import math

import pytest

from mindspore_impl import speed
from mindspore_impl.speed import fused_linear

SIZES = {"tokens": 24, "hidden": 16, "vocab": 30_000, "top_k": 8, "logits_mb": 1}


@pytest.fixture
def restored(ms_runtime):
    yield
    ms_runtime.setup(ms_runtime.RuntimeOptions(device="CPU", threads=2), seed=0)


@pytest.mark.parametrize("name", ["ours", "composed"])
def test_one_measurement(name, restored, capsys):
    """0.1 CE + 0.9 KL of a student near uniform over 30,000 ids: known to within the noise of its small logits."""
    fused_linear.main(name, SIZES)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    ce = math.log(30_000)
    kd = 0.9 * (math.log(0.9 / 8) + ce) + 0.1 * math.log(0.1)
    assert found["loss"] == pytest.approx(0.1 * ce + 0.9 * kd, rel=0.02)
    assert found["seconds"] > 0 and found["peak_mb"] > 50


@pytest.mark.slow
def test_the_table(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    rows = speed.run("fused_linear", rounds=1, sizes=SIZES)
    assert [row.metric for row in rows] == ["loss and all gradients", "peak of the process"] * 2
    assert (tmp_path / "outputs" / "benchmarks.csv").exists()
