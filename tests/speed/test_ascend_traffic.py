"""The traffic benchmark: the real kernel is counted right, the roofline is the reference's, sources are named."""

from types import SimpleNamespace

import numpy as np
import pytest

from mindspore_impl import speed
from mindspore_impl.errors import UserError
from mindspore_impl.speed import ascend_traffic

SOC = {soc.name: soc for soc in ascend_traffic.SOCS}


def milliseconds(soc, peer):
    elements = ascend_traffic.TOKENS * ascend_traffic.VOCAB
    return soc.milliseconds(elements, peer.bytes_an_element, peer.repeats)


def test_the_roofline_gives_the_published_times():
    assert milliseconds(SOC["910B2"], ascend_traffic.VENDOR)[0] == pytest.approx(4.71, abs=0.005)
    memory, vector = milliseconds(SOC["910B2"], ascend_traffic.SKELETON)
    assert memory == pytest.approx(2.36, abs=0.005) and vector == pytest.approx(2.06, abs=0.005)
    assert milliseconds(SOC["910B4"], ascend_traffic.SKELETON)[1] == pytest.approx(vector * 48 * 1.8 / (40 * 1.5))


def test_counts_become_tensors_repeats_and_rows():
    rows, vocab = 3, 1280
    logits = {"read_bytes": 2 * rows * vocab * 2, "written_bytes": rows * vocab * 2}
    total = {"gm": {"logits": logits, "teacher_ids": {"read_bytes": 768, "written_bytes": 0}}}
    total |= {"repeats": {"Exp": 120, "Cast": 180, "Ln": 1}, "scalar": {"UB GetValue": 30, "Gather": 6}}
    work = ascend_traffic.counted(total, rows, vocab)
    assert (work.reads, work.writes) == (2, 1)
    assert work.bytes_an_element == pytest.approx(6 + 768 / (rows * vocab))
    assert work.repeats == {"Exp": 2, "Cast": 3, "Ln": pytest.approx(1 / 60)}
    assert work.scalar == {"UB GetValue": 10, "Gather": 2}

    emulated = {(row.metric, row.peer): row for row in ascend_traffic.counted_rows("case", work)}
    assert emulated["reads", 4].ratio == 2 and emulated["reads", 2].ratio == 1
    assert emulated["vector repeats", 9.31].ours == pytest.approx(5 + 1 / 60)
    assert emulated["repeats of Cast", None].ours == 3 and ("repeats of Ln", None) not in emulated
    assert emulated["repeats of all others", None].ours == pytest.approx(1 / 60)
    assert emulated["scalar accesses", None].ours == 12
    assert {row.source for row in emulated.values()} == {"emulated"}

    modelled = ascend_traffic.modelled_rows("case", work, vocab)
    assert {row.source for row in modelled} == {"modelled"} and {row.device for row in modelled} == set(SOC)
    for name in SOC:
        times = {row.metric: row.ours for row in modelled if row.device == name}
        assert times["larger of both"] == max(times["memory time"], times["vector time"])


def test_inputs_are_well_formed():
    for case in ascend_traffic.CASES:
        inputs = ascend_traffic.make_inputs(case, 3, 500)
        masses = np.exp(inputs["teacher_logp_NK"]).sum(1) + np.exp(inputs["teacher_tail_logp_N"])
        np.testing.assert_allclose(masses, 1, rtol=1e-5)
        assert all(len(set(ids)) == ascend_traffic.TOP_K for ids in inputs["teacher_ids_NK"])
        assert inputs["logits_NV"].dtype == np.float32


def test_a_package_without_the_kernel_says_so(tmp_path):
    with pytest.raises(UserError, match="run the benchmark ascend_traffic in a clone"):
        ascend_traffic.load_kernel(tmp_path / "emulated.py")


def test_a_broken_rule_is_a_message():
    class EmulatorError(Exception):
        pass

    def launch(**_):
        raise EmulatorError("ub-overrun: core 0: Adds")

    emulate = SimpleNamespace(EmulatorError=EmulatorError)
    kernel = SimpleNamespace(emulate=emulate, launch=launch)
    with pytest.raises(UserError, match="ub-overrun: core 0"):
        ascend_traffic.launched(kernel, ascend_traffic.make_inputs("peaked", 2, 500), 1, 1)


def test_a_wrong_gradient_is_not_counted():
    """The numbers are compared with the oracle before anything is printed."""
    kernel = ascend_traffic.load_kernel()
    inputs = ascend_traffic.make_inputs("randn, scale 8", 2, 700)
    launch = ascend_traffic.launched(kernel, inputs, 1, 2)
    ascend_traffic.check_numbers(inputs, launch)
    launch.logits_NV[1, 3] ^= 0x4000
    with pytest.raises(RuntimeError, match="gradient is off"):
        ascend_traffic.check_numbers(inputs, launch)


@pytest.mark.slow
def test_the_kernel_keeps_its_budget(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = speed.run("ascend_traffic", tmp_path / "rows.json")
    ours = {(row.case, row.metric): row.ours for row in rows if row.source == "emulated"}
    for case in ascend_traffic.CASES:
        streaming = f"{case}, streaming"
        assert ours[streaming, "reads"] <= 2.02 and ours[streaming, "writes"] <= 1.01
        assert ours[streaming, "vector repeats"] <= 8
        on_chip = f"{case}, on chip over two cores"
        assert ours[on_chip, "reads"] <= 1.01 and ours[on_chip, "writes"] <= 1.01
        assert ours[streaming, "scalar accesses"] <= 20 * ascend_traffic.TOP_K
