"""The checks of whole files: each problem with its place, all of them, and nothing wrong with a good file."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindspore_impl import files
from mindspore_impl.cli import select_data, verify_store
from mindspore_impl.data import validators
from mindspore_impl.data.rollouts import rollout_to_json
from mindspore_impl.data.teacher_store import StoreHeader
from mindspore_impl.data.teacher_store_writer import StoreWriter
from mindspore_impl.data.validators import check_all
from mindspore_impl.errors import UserError
from mindspore_impl.text.records import record_to_json
from tests.data.test_rollouts import answered


def write(path, lines):
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def told_of(paths, tokenizer=None) -> tuple[int, list[str]]:
    told: list[str] = []
    return check_all(paths, tokenizer, told.append), told


def test_good_files_have_no_problem(records, tokenizer, tmp_path):
    one = write(tmp_path / "records.jsonl", map(record_to_json, records[:6]))
    two = write(
        tmp_path / "rollouts.jsonl", [rollout_to_json(answered(r, tokenizer, n % 2)) for n, r in enumerate(records[:6])]
    )
    three = make_store(tmp_path / "store")
    assert told_of([one, two], tokenizer) == (0, [f"{one}: 6 records, 0 problems", f"{two}: 6 rollouts, 0 problems"])
    assert told_of([three]) == (0, [f"{three}: 3 shards, 6 sequences, 18 rows, 0 problems"])
    found, told = told_of([one])
    assert found == 0 and told == [f"{one}: 6 records, 0 problems; not rendered, as no tokenizer is given"]


def test_every_problem_of_a_record_file_is_told_with_its_line(records, tokenizer, tmp_path):
    lines = [record_to_json(record) for record in records[:6]]
    lines[1] = "{nonsense"
    lines[2]["thinking"] = "fats"
    lines[3] |= {"id": lines[0]["id"]}
    del lines[4]["messages"][-1]["reasoning"]
    path = write(tmp_path / "r.jsonl", [*lines, "[1]", "\udcff"])
    found, told = told_of([path], tokenizer)
    assert found == 6 and told[-1] == f"{path}: 4 records, 6 problems"
    expected = [(2, "JSON"), (3, "'fats'"), (4, f"{path}:1"), (5, "reasoning"), (7, "object"), (8, "UTF-8")]
    for line, (number, words) in zip(told, expected, strict=False):
        assert line.startswith(f"{path}:{number}: ") and words in line and "\n" not in line
    assert len(told_of([path])[1]) == 6  # without a tokenizer nobody sees that a reasoning is missing


def test_every_problem_of_a_rollout_file_is_told_with_its_line(records, tokenizer, tmp_path):
    lines = [rollout_to_json(answered(record, tokenizer)) for record in records[:6]]
    lines[1]["finish"] = "length"
    lines[2]["completion_ids"] = [5000]
    lines[3]["id"] = lines[0]["id"]
    lines[4]["completion_ids"] = [tokenizer.bos_id, *lines[4]["completion_ids"]]
    path = write(tmp_path / "r.jsonl", [*lines, '{"id": 3}', "nonsense"])
    found, told = told_of([path], tokenizer)
    assert found == 6 and told[-1] == f"{path}: 4 rollouts, 6 problems"
    expected = [(2, "'length'"), (3, "5000"), (4, "r.jsonl:1;"), (5, "BOS"), (7, "missing"), (8, "JSON")]
    for line, (number, words) in zip(told, expected, strict=False):
        assert line.startswith(f"{path}:{number}: ") and words in line
    assert told_of([path])[0] == 3  # the form alone: the repeated id and the last two lines


def make_store(folder):
    """Six sequences of three rows each in three shards."""
    writer = StoreWriter(folder, StoreHeader("t" * 64, "k" * 64, 40, 3, 1.0, "top_k"), positions_per_shard=6)
    supervised = np.array([False, True, True, True])
    logp_SK = np.log(np.tile(np.array([0.5, 0.3, 0.1], np.float32), (3, 1)))
    for number in range(6):
        ids_SK = np.tile(np.array([1, 2, 3]), (3, 1))
        writer.add(np.array([number, 1, 2, 3]), supervised, ids_SK, logp_SK, np.log(np.full(3, 0.1, np.float32)))
    writer.close()
    return folder


def shards_of(folder):
    return sorted(folder.glob("shard-*.safetensors"))


def spoil(path, rehash=True, **changes):
    """Change tensors of a shard; with `rehash` the manifest agrees, as if it had been written so."""
    tensors = {name: array.copy() for name, array in load_file(path).items()}
    for name, change in changes.items():
        change(tensors[name])
    save_file(tensors, path)
    if rehash:
        manifest = files.read_json(path.parent / "manifest.json")
        for entry in manifest["shards"]:
            if entry["file"] == path.name:
                entry["sha256"] = files.sha256_file(path)
        files.write_json(path.parent / "manifest.json", manifest)


def test_every_bad_row_of_a_store_is_told_once_with_its_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(validators, "ROWS", 4)  # so that a shard is read in two pieces
    store = make_store(tmp_path / "store")
    first, second, third = shards_of(store)

    def above_and_unsorted(logp_PK):
        logp_PK[1, 0] = 0.5  # two faults: above 0, and the sum
        logp_PK[5] = logp_PK[5, ::-1]

    spoil(first, logp=above_and_unsorted)
    spoil(third, tail_logp=lambda tail_P: tail_P.__setitem__(2, 0.0))
    found, told = told_of([store])
    assert found == 3
    places = [f"{first}: row 1", f"{first}: row 5", f"{third}: row 2", f"{store}: 3 shards, 6 sequences, 18 rows"]
    assert all(line.startswith(place) for line, place in zip(told, places, strict=True)), told
    assert second.is_file()


def test_damage_to_a_store_does_not_hide_the_rest(tmp_path):
    store = make_store(tmp_path / "store")
    first, second, third = shards_of(store)
    first.unlink()
    second.write_bytes(second.read_bytes()[:100])
    spoil(third, rehash=False, logp=lambda logp_PK: logp_PK.__setitem__((3, 0), np.nan))
    found, told = told_of([store])
    assert found == len(told) - 1 == 6
    assert [line.split(": ")[0] for line in told[:-1]] == [str(path) for path in (first, *[second] * 3, *[third] * 2)]
    assert "SHA-256" in told[1] and "SHA-256" in told[4] and "row 3" in told[5]


def test_a_store_of_another_tokenizer_and_a_damaged_manifest(tmp_path, tokenizer):
    store = make_store(tmp_path / "store")
    found, told = told_of([store], tokenizer)
    assert found == 1 and "k" * 16 in told[0]
    (store / "manifest.json").write_text('{"schema": 1}')
    found, told = told_of([store])
    assert found == 1 and told[0].startswith(f"{store}/manifest.json")
    (store / "manifest.json").unlink()
    with pytest.raises(UserError, match="manifest.json"):
        check_all([store])


def test_files_that_are_not_there_or_empty(tmp_path):
    with pytest.raises(UserError, match="absent.jsonl"):
        check_all([tmp_path / "absent.jsonl"])
    empty = write(tmp_path / "empty.jsonl", [])
    assert told_of([empty])[0] == 1


def test_the_commands_exit_1_when_there_are_problems_and_2_when_there_is_nothing_to_check(records, tmp_path, capsys):
    path = write(tmp_path / "r.jsonl", [*map(record_to_json, records[:6]), "nonsense", "more"])
    assert select_data.main(["--check", str(path)]) == 1
    told = capsys.readouterr().out
    assert f"{path}:7: " in told and f"{path}:8: " in told and "6 records, 2 problems" in told
    alpaca = write(
        tmp_path / "a.jsonl", [{"instruction": "q", "output": "</think>a"}, {"instruction": "q", "output": ""}]
    )
    assert select_data.main(["--check", str(alpaca), "--source", "alpaca"]) == 1
    assert "1 records, 1 problems" in capsys.readouterr().out
    assert [select_data.main(["--check", str(alpaca), "--source", name]) for name in ("alpace", "stage")] == [2, 2]
    store = make_store(tmp_path / "store")
    assert select_data.main(["--check", str(store)]) == verify_store.main([str(store)]) == 0
    spoil(shards_of(store)[0], logp=lambda logp_PK: logp_PK.__setitem__((slice(0, 2), 0), np.nan))
    capsys.readouterr()
    assert verify_store.main([str(store)]) == 1
    assert "row 0: " in (told := capsys.readouterr().out) and "row 1: " in told
    shutil.rmtree(store)
    assert verify_store.main([str(store)]) == 2
    assert select_data.main(["--check", str(tmp_path / "absent")]) == 2
