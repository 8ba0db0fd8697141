"""The curriculum's diagram: every stage a box, every input a wire that ends at its reader."""

import itertools
import re

import pytest

from mindspore_impl.report.diagram import curriculum, lanes
from mindspore_impl.report.run_files import read_run
from tests.report.fixture import build_run


@pytest.mark.parametrize("seed", range(4))
def test_wires_in_a_lane_never_overlap(seed):
    spans = [(a, a + 1 + (a * 7 + seed * b) % 5) for a, b in itertools.product(range(6), (1, 2))]
    found = lanes(spans)
    for (one, a), (other, b) in itertools.combinations(zip(spans, found, strict=True), 2):
        assert a != b or one[1] <= other[0] or other[1] <= one[0]
    assert lanes([(0, 1), (1, 2), (2, 3)]) == [0, 0, 0], "a lane is used again"


def test_each_input_of_a_stage_is_a_wire_to_its_box(tmp_path):
    html = curriculum(read_run(build_run(tmp_path / "run")))
    boxes = re.findall(r"<li.*?</li>", html)
    assert len(boxes) == 7, "evaluations stand in the box of their stage"
    assert "test_fast" in boxes[0] and "tokens" in boxes[0] and "starts from data alone" in boxes[0]
    wires = re.findall(r"<g .*?</g>", html)
    names = [re.search("<title>(.*?)</title>", wire)[1] for wire in wires]
    assert sorted(names) == ["capture_fast", "rollout_fast", "sft_fast", "sft_reasoning", "teacher"]
    ends = {name: [float(y) // 100 for y in re.findall(r'class="head" d="M\d+ ([\d.]+)', wire)]
            for name, wire in zip(names, wires, strict=True)}  # fmt: skip
    assert ends["sft_fast"] == [3, 5, 6] and ends["teacher"] == [4] and ends["rollout_fast"] == [4, 5]
    starts = {name: float(re.search(r'd="M\d+ ([\d.]+)H', wire)[1]) // 100
              for name, wire in zip(names, wires, strict=True)}  # fmt: skip
    assert (starts["teacher"], starts["sft_fast"], starts["capture_fast"]) == (0, 2, 4)
