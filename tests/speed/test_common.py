"""What every benchmark relies on: turns, medians, ratios, and the three outputs."""

import csv
import importlib
import json

import pytest

from mindspore_impl import speed
from mindspore_impl.errors import UserError
from mindspore_impl.speed.common import COLUMNS, Row, alternate, compared, contest, medians, publish


def row(ours=2.0, peer=1.0, higher=True, **more):
    return compared("c", "m", "u", ours, peer, "them", higher, **more)


def test_runs_take_turns_after_one_call_outside():
    seen = []
    seconds = alternate({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, rounds=5, calls=2)
    assert "".join(seen) == "ab" + "aabb" * 5
    assert {name: len(values) for name, values in seconds.items()} == {"a": 5, "b": 5}
    assert medians({"x": [3.0, 1.0, 100.0]}) == {"x": 3.0}
    with pytest.raises(ValueError, match="five"):
        alternate({"a": lambda: None}, rounds=4)


def test_a_ratio_above_one_always_means_ours_is_better_and_a_source_is_one_of_three():
    assert (row(4.0, 2.0, higher=True).ratio, row(4.0, 2.0, higher=False).ratio) == (2.0, 0.5)
    with pytest.raises(ValueError, match="guessed"):
        row(source="guessed")


def test_ours_comes_first_and_every_peer_gets_a_row():
    calls = iter(range(100))
    runs = {"ours": lambda: next(calls), "a": lambda: next(calls), "b": lambda: next(calls)}
    rows = contest("c", "rate", "1/s", runs, 5, lambda seconds: 1 / seconds, higher=True)
    assert [row.peer_name for row in rows] == ["a", "b"] and next(calls) == 18
    assert all(row.ratio == row.ours / row.peer and row.ours == rows[0].ours for row in rows)


def test_every_name_is_a_benchmark():
    for name in speed.PEERS:
        assert callable(importlib.import_module(f"mindspore_impl.speed.{name}").rows)


def test_a_peer_that_is_needed_and_missing_names_its_extra(monkeypatch):
    monkeypatch.setitem(speed.PEERS, "generate", ("bench:no_such_package",))
    with pytest.raises(UserError, match=r"no_such_package.*\[bench\]"):
        speed.run("generate")


def test_table_csv_and_json(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [row(), Row("alone", "m", "u", 12345.6, source="modelled", device="x")]
    for _ in range(2):
        publish("b", rows, {"python": "3"}, tmp_path / "out.json")
    shown = capsys.readouterr().out
    assert "12,346" in shown and "modelled" in shown and "them" in shown
    written = json.loads((tmp_path / "out.json").read_text())
    assert [list(entry) for entry in written] == [list(COLUMNS)] * 2 and written[0]["benchmark"] == "b"
    assert written[1]["peer"] is None and written[0]["ratio"] == 2.0
    with open(tmp_path / "outputs" / "benchmarks.csv") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4 and list(lines[0]) == ["time", *COLUMNS]
    assert lines[0]["versions"] == "python=3"
