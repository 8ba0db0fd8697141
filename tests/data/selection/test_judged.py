"""Steps that judge: wrong labels, right generations, difficulty and its bands."""

from dataclasses import replace

import pytest

from mindspore_impl import files
from mindspore_impl.data import judging, list_programs
from mindspore_impl.data.difficulty import LENGTH, PASS_RATE
from mindspore_impl.data.options import ListProgramsSet
from mindspore_impl.data.rollouts import rollout_to_json, write_rollouts
from mindspore_impl.data.selection.stream import Item
from mindspore_impl.errors import UserError
from mindspore_impl.text import chat
from mindspore_impl.text.records import record_to_json
from tests.data.test_judging import answer_of


@pytest.fixture
def given(records, tokenizer, tmp_path):
    """Options of a step over a file: both answers to record 0 are right, one to record 1, none to 2; 3 has none."""
    items = [answer_of(records[0], tokenizer, 0), answer_of(records[0], tokenizer, 1, reasoning="sort")]
    items += [answer_of(records[1], tokenizer, 0), answer_of(records[1], tokenizer, 1, answer="a")]
    items += [answer_of(records[2], tokenizer, 0, answer="a"), answer_of(records[2], tokenizer, 1, finished=False)]
    write_rollouts(tmp_path / "r.jsonl", items)
    return {"rollouts": str(tmp_path / "r.jsonl"), "tokenizer": str(tokenizer.path)}


def prompts_of(records):
    return [Item(replace(record, messages=record.messages[:-1]), "train", record.id) for record in records]


def items_of(records):
    return [Item(record, "train", record.id) for record in records]


def reasons(result):
    return [drop.reason for drop in result.drops.values()]


def test_wrong_labels_go(apply):
    noisy = list(list_programs.generate(ListProgramsSet(count=60, noise=0.5)))
    result = apply("verify", items_of(noisy))
    right = [r.id for r in noisy if r.messages[-1].content == r.meta["answer"]]
    assert result.kept == right and 20 < len(right) < 50 and set(reasons(result)) == {"its answer is wrong"}


def test_what_cannot_be_verified_stays_or_goes(apply, item):
    items = [item("b", identity="x"), item("5", identity="y", meta={"task": "gsm8k", "answer": "5.0"})]
    assert apply("verify", items).kept == ["x", "y"] and apply("verify", items, unverifiable="drop").kept == ["y"]
    with pytest.raises(UserError, match="'z'.*'riddle'"):
        apply("verify", [item("5", identity="z", meta={"task": "riddle"})])


def test_a_prompt_alone_has_no_label_to_verify_and_no_length(apply, records, given):
    items = [*items_of(records[:1]), *prompts_of(records[1:2])]
    for step in (("verify", {}), ("difficulty", {"tokenizer": given["tokenizer"]})):
        result = apply(step[0], items, **step[1])
        assert result.kept == [records[0].id] and reasons(result) == ["no answer of the assistant at the end"]
    assert apply("rejection", prompts_of(records[:1]), **given).kept == [records[0].id]  # it gets one


def test_a_recipe_judges_each_rollout_file_once(select, records, given, tmp_path, monkeypatch):
    judged, judge = [], judging.judge

    def counted(rollouts, tokenizer):
        judged.append(len(rollouts))
        return judge(rollouts, tokenizer)

    monkeypatch.setattr(judging, "judge", counted)
    monkeypatch.chdir(tmp_path)
    sets = {"train": {"source": "records", "path": str(tmp_path / "train.jsonl")}}
    steps = [{"difficulty": given}, {"band": {"field": PASS_RATE, "low": 0.2}}, {"rejection": given}]
    report, selected, _ = select([record_to_json(record) for record in records[:3]], steps, data={"sets": sets})
    assert [record["id"] for record in selected] == [record.id for record in records[:2]] and judged == [6]
    assert [step["notes"].get("right") for step in report["steps"][1:]] == [3, None, 3]


def test_the_shortest_right_generation_becomes_the_answer(apply, records, given):
    result = apply("rejection", items_of(records[:4]), **given)
    assert result.kept == [record.id for record in records[:2]]
    assert [one.record.messages[-1].reasoning for one in result.items] == ["sort", records[1].messages[-1].reasoning]
    assert reasons(result) == ["no generation is right", "no generation in the rollout file"]
    assert result.notes == {"prompts": 3, "generations": 6, "right": 3}


def test_difficulty_is_written_into_meta(apply, records, tokenizer, given):
    result = apply("difficulty", items_of(records[:4]), **given)
    assert [one.record.meta[PASS_RATE] for one in result.items] == [1.0, 0.5, 0.0]
    lengths = [len(chat.render(record, tokenizer).ids) for record in records[:3]]
    assert [one.record.meta[LENGTH] for one in result.items] == lengths and records[0].meta.get(LENGTH) is None
    alone = apply("difficulty", items_of(records), tokenizer=given["tokenizer"])
    assert len(alone.kept) == 40 and PASS_RATE not in alone.items[0].record.meta


def test_a_band_keeps_what_lies_between(apply, item):
    items = [item("b", identity=str(n), meta={PASS_RATE: n / 4}) for n in range(5)]
    assert apply("band", items, field=PASS_RATE, low=0, high=1, ends="excluded").kept == ["1", "2", "3"]
    assert apply("band", items, field=PASS_RATE, high=0.5).kept == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("band", {"bucket": "easy"}, "steps.0..band"),
        ("band", {}, "bucket"),
        ("band", {"low": 0.5}, "steps.0..band: record '1': .*difficulty_loss"),
        ("rejection", {"rollouts": "r.jsonl"}, "tokenizer: "),
        ("rejection", {"tokenizer": "{tokenizer}"}, "rollouts: "),
        ("difficulty", {}, "tokenizer: "),
    ],
)
def test_what_a_step_cannot_do_is_refused(apply, item, name, options, words, tokenizer):
    options = {key: str(tokenizer.path) if value == "{tokenizer}" else value for key, value in options.items()}
    with pytest.raises(UserError, match=words):
        apply(name, [item("b")], **options)


def test_a_generation_without_its_prompt_is_refused(apply, records, given, tokenizer, tmp_path):
    line = rollout_to_json(answer_of(records[0], tokenizer, 0))
    del line["meta"]["prompt_id"]
    files.write_jsonl(tmp_path / "r.jsonl", [line])
    with pytest.raises(UserError, match="steps.0..rejection: rollout .*meta.prompt_id"):
        apply("rejection", items_of(records[:1]), **given)
