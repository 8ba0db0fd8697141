"""The teacher's probabilities at each token of what a stage trained on."""

import json
import math
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindspore_impl.data.rollouts import read_rollouts, to_sample
from mindspore_impl.data.teacher_store import StoreReader
from mindspore_impl.report import teacher_view
from mindspore_impl.report.run_files import read_run
from mindspore_impl.text.tokenizer import Tokenizer
from tests.report.distilled import build_distilled
from tests.report.fixture import change_json
from tests.report.parsed_page import Page, data_of


def test_each_token_has_the_teacher_s_ids_their_probability_and_the_rest(distilled):
    html = teacher_view.section(read_run(distilled))
    shown = data_of(html, "teacher-data")
    tokenizer = Tokenizer.load(distilled / "tokenizer" / "tokenizer.model")
    (path,) = distilled.glob("stages/*_rollout_fast/rollouts.jsonl")
    (store,) = distilled.glob("stages/*_capture_fast/store")
    sample = to_sample(read_rollouts(path, tokenizer, True)[1], tokenizer)  # the first fast one comes first
    ids_SK, logp_SK, tail_S = StoreReader(store).lookup(sample.ids, sample.supervised)
    targets = sample.ids[1:][sample.supervised[1:]]
    assert len(shown[0]) == len(targets) > 4
    for row, (text, given, listed, rest) in enumerate(shown[0]):
        assert text.strip() == tokenizer.decode([targets[row]], skip_special=False).strip()
        assert [p for _, p, _ in listed] == pytest.approx(list(map(math.exp, logp_SK[row])), rel=6e-3)
        assert rest == pytest.approx(math.exp(tail_S[row]), rel=6e-3)
        here = [bool(mark) for _, _, mark in listed]
        assert here == [token == targets[row] for token in ids_SK[row]] and any(here) == (row % 2 == 0)
        assert given == (listed[here.index(True)][1] if any(here) else None)
    assert len(shown) == teacher_view.SEQUENCES
    page = Page(html)
    assert page.text.count("fast mode") == page.text.count("reasoning mode") == 6
    assert sum(1 for value in page.values("class") if value and value.startswith("tok ")) == 4 + sum(map(len, shown))


def test_words_keep_the_space_before_them(distilled):
    tokenizer = Tokenizer.load(distilled / "tokenizer" / "tokenizer.model")
    ids = tokenizer.encode("list a apply sort")
    text_of = teacher_view._Texts(tokenizer)
    assert "".join(map(text_of, ids)).strip() == "list a apply sort"
    assert text_of(tokenizer.eos_id) == "[unused10]"
    assert teacher_view.visible(" a\n") == "␣a⏎"


def test_a_page_stays_small_and_says_what_it_left_out(distilled, monkeypatch):
    monkeypatch.setattr(teacher_view, "MOST_TOKENS", 3)
    monkeypatch.setattr(teacher_view, "MOST_IDS", 2)
    html = teacher_view.section(read_run(distilled))
    shown = data_of(html, "teacher-data")
    assert {len(tokens) for tokens in shown} == {3} and {len(token[2]) for tokens in shown for token in tokens} == {2}
    for _, _, listed, rest in (token for tokens in shown for token in tokens):
        assert sum(p for _, p, _ in listed) + rest == pytest.approx(1, abs=0.01), "what is not listed is in the rest"
    assert "more tokens" in html


def test_a_store_that_is_gone_or_damaged_is_said_and_leaves_the_report_whole(tmp_path):
    folder = build_distilled(tmp_path / "run", rollouts=4)
    (store,) = folder.glob("stages/*_capture_fast/store")
    (manifest, shard) = (next(store.glob(name)) for name in ("manifest.json", "shard-*.safetensors"))
    whole, tensors = json.loads(manifest.read_text()), load_file(shard)
    manifest.write_text(json.dumps(whole | {"counts": []}))
    assert "no sequences can be shown" in teacher_view.section(read_run(folder))
    manifest.write_text(json.dumps(whole))
    save_file(tensors | {"logp": tensors["logp"] * np.float16("nan")}, shard)
    assert "no sequences can be shown" in teacher_view.section(read_run(folder))
    shard.unlink()
    html = teacher_view.section(read_run(folder))
    assert "no sequences can be shown" in html and "teacher-data" not in html
    with open(folder / "config.yaml", "a", encoding="utf-8") as file:
        file.write("tokenizer: [1]\n")
    assert "config.yaml: tokenizer" in teacher_view.section(read_run(folder))


def test_answers_that_the_store_lacks_do_not_use_up_the_places(distilled, tmp_path):
    folder = shutil.copytree(distilled, tmp_path / "run")
    (path,) = folder.glob("stages/*_rollout_fast/rollouts.jsonl")
    *held, lacking = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text(lacking * 40 + "".join(held), encoding="utf-8")
    assert len(data_of(teacher_view.section(read_run(folder)), "teacher-data")) == teacher_view.SEQUENCES


def test_labels_are_shown_where_there_are_no_rollouts(tmp_path):
    """From the data set that the stage draws from."""
    folder = build_distilled(tmp_path / "run", rollouts=12)
    (path,) = folder.glob("stages/*_rollout_fast/rollouts.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.unlink()
    thought = {"role": "assistant", "content": "a b", "reasoning": "sort a"}
    for line in lines:
        line["messages"].append(thought if line["thinking"] == "reasoning" else {"role": "assistant", "content": "b a"})
    records = tmp_path / "records.jsonl"
    keys = ("id", "thinking", "messages")
    records.write_text("".join(json.dumps({key: line[key] for key in keys}) + "\n" for line in lines))
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    text = text.replace("    rollouts: rollout_fast\n", "    data: {mixture: {labels: 1.0}}\n")
    text += f"data: {{sets: {{labels: {{source: records, path: {json.dumps(str(records))}}}}}}}\n"
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    change_json(folder / "plan.json", lambda plan: plan["stages"][8]["inputs"].pop("rollouts"))
    assert len(data_of(teacher_view.section(read_run(folder)), "teacher-data")) == 11, "all that the store holds"
