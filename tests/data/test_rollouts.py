"""The rollout file: what is written is read back; what contradicts itself or the tokenizer is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mindspore_impl.data.rollouts import Rollout, read_rollouts, rollout_to_json, to_sample, write_rollouts
from mindspore_impl.errors import UserError
from mindspore_impl.text import chat
from mindspore_impl.text.records import prompt_messages


def answered(record, tokenizer, cut=0) -> Rollout:
    """The record's own answer as if generated, `cut` tokens short of its end."""
    prompt = chat.render_prompt(prompt_messages(record), tokenizer, record.thinking)
    completion = chat.render(record, tokenizer).ids[len(prompt) :].tolist()
    completion = completion[: len(completion) - cut]
    return Rollout(
        record.id, prompt_messages(record), record.thinking, prompt, completion, tokenizer.decode(completion),
        "length" if cut else "stop", "ab" * 32, tokenizer.sha256, {"temperature": 1.0}, record.meta,
    )  # fmt: skip


def test_what_is_written_is_read(records, tokenizer, tmp_path):
    items = [answered(record, tokenizer, cut=index % 3) for index, record in enumerate(records)]
    assert write_rollouts(tmp_path / "r.jsonl", iter(items)) == len(items)
    assert read_rollouts(tmp_path / "r.jsonl", tokenizer, keep_truncated=True) == items
    kept = read_rollouts(tmp_path / "r.jsonl", tokenizer, keep_truncated=False)
    assert kept == [item for item in items if item.finish == "stop"] and 0 < len(kept) < len(items)
    prompt_ids, completion_ids = np.array(items[0].prompt_ids, np.int32), list(np.int32(items[0].completion_ids))
    write_rollouts(tmp_path / "r.jsonl", [replace(items[0], prompt_ids=prompt_ids, completion_ids=completion_ids)])
    assert read_rollouts(tmp_path / "r.jsonl", tokenizer, True) == items[:1]


def test_a_finished_rollout_is_the_rendered_record(records, tokenizer):
    sample, rendered = to_sample(answered(records[0], tokenizer), tokenizer), chat.render(records[0], tokenizer)
    assert (sample.ids == rendered.ids).all() and (sample.supervised == rendered.supervised).all()
    assert (sample.record_id, sample.thinking, sample.meta) == (records[0].id, "reasoning", records[0].meta)


def test_trap_18_a_cut_rollout_is_not_supervised_as_if_it_ended(records, tokenizer):
    for cut in (1, 3):
        item = answered(records[1], tokenizer, cut)
        sample = to_sample(item, tokenizer)
        assert sample.ids[sample.supervised].tolist() == item.completion_ids
        assert tokenizer.eos_id not in sample.ids[sample.supervised]
        bare = to_sample(replace(item, completion_ids=None, text="[unused16] sort a b"), tokenizer)
        assert tokenizer.eos_id not in bare.ids[bare.supervised]


def test_trap_18_a_finish_that_the_ids_contradict_is_refused(records, tokenizer, tmp_path):
    whole, cut = answered(records[0], tokenizer), answered(records[0], tokenizer, 2)
    for wrong in (replace(whole, finish="length"), replace(cut, finish="stop")):
        with pytest.raises(UserError, match=f"{records[0].id}.*finish is '{wrong.finish}'"):
            to_sample(wrong, tokenizer)
        write_rollouts(tmp_path / "r.jsonl", [wrong])
        with pytest.raises(UserError, match=f"r.jsonl:1: rollout '{records[0].id}': finish is"):
            read_rollouts(tmp_path / "r.jsonl", tokenizer, True)


def test_text_of_an_external_engine_is_encoded_by_the_template(records, tokenizer, tmp_path):
    record, whole = records[2], answered(records[2], tokenizer)
    assistant = record.messages[-1]
    value = rollout_to_json(whole)
    for key in ("prompt_ids", "completion_ids", "weights_sha256", "tokenizer_sha256", "sampling", "meta"):
        del value[key]
    value["text"] = f" [unused16] {assistant.reasoning} [unused17] {assistant.content}"
    (tmp_path / "r.jsonl").write_text(json.dumps(value) + "\n", encoding="utf-8")
    item = read_rollouts(tmp_path / "r.jsonl", tokenizer, True)[0]
    assert (item.prompt_ids, item.completion_ids) == (whole.prompt_ids, whole.completion_ids)
    assert (item.tokenizer_sha256, item.weights_sha256) == (tokenizer.sha256, None)


@pytest.mark.parametrize(("changes", "needles"), [
    ({"completion_ids": [5, 130, 3]}, ["the id 130", "vocabulary of 130"]),
    ({"prompt_ids": [1, -2]}, ["prompt_ids", "-2"]),
    ({"prompt_ids": []}, ["prompt_ids"]),
    ({"completion_ids": [5, 2.0]}, ["completion_ids"]),
    ({"completion_ids": [True, 3]}, ["completion_ids"]),
    ({"tokenizer_sha256": "ee" * 32}, ["eeeeeeeeeeee", "tokenizer.path"]),
    ({"tokenizer_sha256": None}, ["tokenizer_sha256"]),
    ({"finish": "eos"}, ["finish", "'eos'"]),
    ({"text": None}, ["text"]),
    ({"sampling": 3}, ["sampling"]),
    ({"sampling": {"temperature": float("inf")}}, ["sampling"]),
    ({"meta": {"score": [float("nan")]}}, ["meta"]),
    ({"meta": {"answer": "\ud83d"}}, ["meta"]),
    ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, ["messages"]),
])  # fmt: skip
def test_a_bad_rollout_is_named(records, tokenizer, tmp_path, changes, needles):
    lines = [rollout_to_json(answered(record, tokenizer)) for record in records[:2]]
    lines[1] |= changes
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_rollouts(tmp_path / "r.jsonl", tokenizer, True)
    for needle in [f"r.jsonl:2: rollout '{records[1].id}'", *needles]:
        assert needle in str(caught.value)


def test_files_that_cannot_be_used(records, tokenizer, tmp_path):
    path, item = tmp_path / "r.jsonl", answered(records[0], tokenizer)
    write_rollouts(path, [item, item])
    with pytest.raises(UserError, match=r"r.jsonl:2: .*r.jsonl:1;"):
        read_rollouts(path, tokenizer, True)
    write_rollouts(path, [answered(records[0], tokenizer, 1)])
    with pytest.raises(UserError, match="keep_truncated"):
        read_rollouts(path, tokenizer, False)
    path.write_text(json.dumps(rollout_to_json(item) | {"promt_ids": [1]}), encoding="utf-8")
    with pytest.raises(UserError, match="r.jsonl:1: .*'promt_ids'.*'prompt_ids'"):
        read_rollouts(path, tokenizer, True)
