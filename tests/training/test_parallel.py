"""Ranks meet; they train as one does, with shares of the optimizer bit for bit as without; states fit any number."""

from pathlib import Path

import numpy as np
import pytest

CASES = Path(__file__).parent / "parallel_cases.py"


@pytest.fixture(scope="module")
def job(two_ranks, tmp_path_factory):
    """The folder of one job, and its results: a job costs twenty seconds, so it does all."""
    folder = tmp_path_factory.mktemp("ranks")
    return folder, two_ranks(CASES, "essentials", folder)


def test_ranks_meet_and_stop_together(job):
    gathered = [{"rank": 0, "text": "é"}, {"rank": 1, "text": "éé"}]
    # SIGTERM at rank 1 stops both at the same meeting
    expected = {"gathered": gathered, "told": [0, "said"], "before": False, "stopped": True, "after": True}
    assert [result["meeting"] for result in job[1]] == [expected, expected]


def test_two_ranks_train_as_one(job, ms_runtime):
    from tests.training.parallel_cases import VOCAB, Trainer

    folder, found = job
    alone = Trainer(False, 4)
    expected = [alone.step(0), alone.step(1)]
    for name in ("whole", "shares"):
        for result in (rank[name] for rank in found):
            np.testing.assert_allclose(result["steps"][:2], expected, rtol=2e-6)
            assert result["spoilt"] == [0.0, True], "every rank skips what is not finite on one"
            assert result["exchanged"] == [result["steps"][2], result["weights"]], "a state fits with shares or without"
            assert result["steps"] == found[0]["whole"]["steps"], "reports have the same bits, ranks and shares alike"
            assert result["weights"] == found[0]["whole"]["weights"]
        assert found[0][name]["saved"]["adam_m.table"] == [VOCAB, VOCAB] and not found[1][name]["saved"]
    assert found[1]["whole"]["held"]["adam_v.table"] == VOCAB * VOCAB
    assert found[1]["shares"]["held"] == {
        f"adam_{k}.{name}": size for k in "mv" for name, size in (("table", 113), ("bias", 8))
    }
    third = alone.step(2)
    alone.load(folder / "shares.safetensors")
    np.testing.assert_allclose(alone.step(2), third, rtol=2e-6)
    np.testing.assert_allclose(third, found[0]["shares"]["steps"][2], rtol=2e-6)


@pytest.mark.slow
def test_the_same_bits_run_to_run(job, two_ranks, tmp_path):
    assert two_ranks(CASES, "essentials", tmp_path) == job[1]


@pytest.mark.slow
def test_a_run_resumes_without_shares_and_on_another_number_of_ranks(two_ranks, ms_runtime, tmp_path):
    from mindspore_impl import checkpoint
    from tests.training.parallel_cases import run_of_trainer

    folder = tmp_path
    run_of_trainer(folder / "for_two", 6, killed_at=4)
    for result in two_ranks(CASES, "resumes", folder):
        assert all(result.values()), result
    run_of_trainer(folder / "for_one", 6)
    expected = checkpoint.latest(folder / "at_once" / "checkpoints")
    for name in ("for_one", "for_two"):
        found = checkpoint.latest(folder / name / "checkpoints")
        assert found.step == 6
        for key, array in checkpoint.read_arrays(expected.weights_path).items():
            stored = checkpoint.read_arrays(found.weights_path)[key]
            np.testing.assert_allclose(stored, array, rtol=1e-3, atol=1e-4, err_msg=f"{name} {key}")
        for key in ("step", "supervised_tokens", "skipped_steps"):
            assert found.position["progress"][key] == expected.position["progress"][key], name


@pytest.mark.slow
def test_losses_over_24_steps():
    """Momentum's update is linear in the gradient; AdamW divides by its size, and so enlarges the sums' rounding."""
    from mindspore_impl.speed.data_parallel import launch

    (one,), (two, other) = launch(1, "curves", 24), launch(2, "curves", 24)
    assert two == other
    np.testing.assert_allclose(two["momentum"], one["momentum"], rtol=1e-6)
    np.testing.assert_allclose(two["adamw"], one["adamw"], rtol=1e-3)
    assert two["shares"] == two["adamw"] and two["shares_weights"] == two["adamw_weights"]
    assert one["momentum"][-1] < one["momentum"][0] - 0.1
