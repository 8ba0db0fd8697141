"""The loss of each sample: independent of packing, resumable by part, and never NaN."""

import functools
import json

import numpy as np
import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.evaluation import sample_loss
from mindspore_impl.text.chat import Sample
from tests.evaluation.conftest import damaged, logits_of

LENGTH = 24


@pytest.fixture(scope="module", autouse=True)
def one_network():
    """Compile the network once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_loss, "_network", functools.cache(sample_loss._network))
        yield


def samples_of(count, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        ids = rng.integers(1, 37, int(rng.integers(4, 12))).astype(np.int32)
        supervised = rng.random(len(ids)) < 0.5
        supervised[0], supervised[-1] = False, True
        made.append(Sample(ids, supervised, f"r{index}", "fast"))
    return made


def measure(model, samples, folder, rows=3, length=LENGTH, per_part=100):
    return sample_loss.sample_losses(sample_loss.LossJob(model, samples, length, rows, folder, per_part))[0]


def reference(model, sample):
    """Mean cross-entropy in float64 of the sample alone."""
    logits_LV = logits_of(model, sample.ids)
    logp_LV = logits_LV - np.log(np.exp(logits_LV).sum(-1, keepdims=True))
    targets = np.flatnonzero(sample.supervised[1:])
    return -np.mean([logp_LV[t, sample.ids[t + 1]] for t in targets])


def test_each_sample_has_its_own_loss_whatever_it_is_packed_with(model, tmp_path):
    samples = samples_of(23)
    packed = measure(model, samples, tmp_path / "packed")
    assert packed == pytest.approx([reference(model, sample) for sample in samples], rel=2e-5)
    assert np.std(packed) > 0.1, "the samples differ"


def test_a_killed_pass_continues_at_the_next_part(model, tmp_path, monkeypatch):
    samples = samples_of(12)
    whole = measure(model, samples, tmp_path / "parts", per_part=5)
    parts = sorted((tmp_path / "parts").glob("*.jsonl"))
    assert [len(part.read_text().splitlines()) for part in parts] == [5, 5, 2]
    parts[2].unlink()
    parts[0].with_suffix(".json").unlink()  # without its note a part counts as missing
    lines = [json.loads(line) for line in parts[1].read_text().splitlines()]
    before = parts[1].stat().st_mtime_ns
    assert measure(model, samples, tmp_path / "parts", per_part=5) == whole
    assert whole[5:10] == [line["loss"] for line in lines] and parts[1].stat().st_mtime_ns == before
    monkeypatch.setattr(sample_loss, "_network", None)  # all parts are there: no network is built
    assert measure(None, samples, tmp_path / "parts", per_part=5) == whole


def test_faults_name_the_record(model, tmp_path):
    with damaged(model.lm_head_weight, 5), pytest.raises(UserError, match="record 'r.*': its loss is nan"):
        measure(model, samples_of(4), tmp_path)
    assert not list(tmp_path.glob("*.jsonl"))
    with pytest.raises(UserError, match="record 'r.*5"):
        measure(model, samples_of(6), tmp_path, length=5)
