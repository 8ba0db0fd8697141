"""Answers of a vLLM server or script as rollouts: equal to those of our own engine, or refused."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from mindspore_impl.data.rollouts import read_rollouts, to_sample
from mindspore_impl.distill.rollout import prompts_of
from mindspore_impl.errors import UserError
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.generation.sampling import sample_seed
from mindspore_impl.integrations.vllm import asking
from mindspore_impl.integrations.vllm.answers import BadAnswer, Output
from mindspore_impl.integrations.vllm.client import Server
from mindspore_impl.integrations.vllm.rollouts import CLOSED, import_rollouts, rollout_of, rollout_request
from mindspore_impl.text import chat
from mindspore_impl.text.records import prompt_messages
from tests.data.small import labelled, trained_on
from tests.integrations.fake_server import serving

SAMPLING = SamplingOptions(temperature=0.7, top_p=0.9, max_new_tokens=12)


@pytest.fixture(scope="module")
def records():
    return labelled(40, "reasoning")


@pytest.fixture(scope="module")
def tokenizer(records, tmp_path_factory):
    return trained_on(records, tmp_path_factory.mktemp("tokenizer"), 130)


@pytest.fixture(scope="module")
def prompts(records, tokenizer):
    return prompts_of(records[:4], tokenizer, 2, seed=3)


def label(record, tokenizer) -> list[int]:
    """The record's own answer, as if a student had given it."""
    prompt = chat.render_prompt(prompt_messages(record), tokenizer, record.thinking)
    return chat.render(record, tokenizer).ids[len(prompt) :].tolist()


def offline(prompt, *outputs) -> dict:
    return {"request_id": "1", "prompt_token_ids": prompt.ids, "outputs": [
        {"index": n, "text": "x", "token_ids": ids, "finish_reason": finish, "stop_reason": None, "logprobs": None}
        for n, (ids, finish) in enumerate(outputs)
    ]}  # fmt: skip


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_prompts_are_those_of_our_own_rollout(records, tokenizer, prompts):
    assert [prompt.key for prompt in prompts[:3]] == [
        f"{records[0].id}/reasoning#0", f"{records[0].id}/reasoning#1", f"{records[1].id}/reasoning#0"
    ]  # fmt: skip
    assert prompts[1].seed == sample_seed(3, records[0].id, 1) != prompts[0].seed
    assert prompts[0].ids == chat.render_prompt(prompt_messages(records[0]), tokenizer, "reasoning")
    with pytest.raises(UserError, match=records[0].id):
        prompts_of([records[0], records[0]], tokenizer, 1, 0)


def test_a_server_gives_the_rollout_file(records, tokenizer, prompts, tmp_path):
    answers = {tuple(prompt.ids): label(prompt.record, tokenizer) for prompt in prompts}
    with serving(None, lambda body: (answers[tuple(body["prompt"])], "stop", None)) as fake:
        server = Server(fake.url, timeout=5, in_flight=3)
        asking.ask_rollouts(server, prompts, SAMPLING, tokenizer, tmp_path / "a.jsonl")
        fake.asked.clear()
        asking.ask_rollouts(server, prompts, SAMPLING, tokenizer, tmp_path / "a.jsonl")
        assert not fake.asked
        body = next(body for body in fake.bodies if body["seed"] == prompts[0].seed)
    wanted = {"temperature": 0.7, "top_p": 0.9, "top_k": -1, "max_tokens": 12, "stop_token_ids": [tokenizer.eos_id],
              "logit_bias": {str(tokenizer.bos_id): -100.0}, "skip_special_tokens": False}  # fmt: skip
    assert {key: body[key] for key in wanted} == wanted
    path = tmp_path / "rollouts.jsonl"
    summary = import_rollouts([tmp_path / "a.jsonl"], prompts, SAMPLING, tokenizer, path, "w" * 64)
    assert summary == {"rollouts": 8, "missing": 0, "flaws": {"copies": 4}, "repaired": {}, "refused": {}}
    found = read_rollouts(path, tokenizer, keep_truncated=True)
    assert [item.id for item in found] == [prompt.key for prompt in prompts]
    for item, prompt in zip(found, prompts, strict=True):
        assert item.completion_ids == label(prompt.record, tokenizer) and item.finish == "stop"
        assert item.meta["correct"] is True and item.meta["prompt_id"] == prompt.record.id
        assert (item.weights_sha256, item.sampling["seed"]) == ("w" * 64, prompt.seed)
        rendered = chat.render(prompt.record, tokenizer)
        assert (to_sample(item, tokenizer).ids == rendered.ids).all()


@pytest.mark.parametrize(("fault", "kind"), [("other prompt", "about another prompt"), ("two choices", "another form")])
def test_a_fault_leaves_one_question_and_a_second_run_asks_it(tokenizer, prompts, tmp_path, capsys, fault, kind):
    mine = prompts[:1] + prompts[2:3]
    with serving(None, lambda body: (label(mine[0].record, tokenizer), "stop", None)) as fake:
        fake.faults[tuple(mine[0].ids)] = [fault, "for ever"]
        server = Server(fake.url, timeout=5, in_flight=3, retries=1, backoff=0.01)
        with pytest.raises(UserError, match="1 of 2 "):
            asking.ask_rollouts(server, mine, SAMPLING, tokenizer, tmp_path / "a.jsonl")
        assert f"2 x {kind}" in capsys.readouterr().out
        asking.ask_rollouts(server, mine, SAMPLING, tokenizer, tmp_path / "a.jsonl", allow_missing=1)
        fake.faults.clear()
        asking.ask_rollouts(server, mine, SAMPLING, tokenizer, tmp_path / "a.jsonl")
    assert import_rollouts([tmp_path / "a.jsonl"], mine, SAMPLING, tokenizer, tmp_path / "r.jsonl")["rollouts"] == 2


def test_an_offline_script_with_several_outputs_a_prompt(tokenizer, prompts, tmp_path):
    whole = label(prompts[0].record, tokenizer)
    lines = [
        offline(prompts[0], (whole, "stop"), (whole[:3], "length"), (whole, "stop")),  # one more than wanted
        offline(prompts[2], (whole[:-1], "stop"), ([tokenizer.bos_id], "length")),  # closing piece stripped; BOS drawn
    ]
    path = write(tmp_path / "offline.jsonl", *lines)
    with pytest.raises(UserError, match="1 of 4 .*--allow-missing 1"):
        import_rollouts([path], prompts[:4], SAMPLING, tokenizer, tmp_path / "r.jsonl")
    summary = import_rollouts([path], prompts[:4], SAMPLING, tokenizer, tmp_path / "r.jsonl", allow_missing=1)
    assert summary["repaired"] == {CLOSED: 1} and summary["missing"] == 1 and summary["flaws"]["truncated"] == 1
    assert summary["refused"] == {"to no question of ours": 1, "no rollout": 1}
    found = {item.id: item for item in read_rollouts(tmp_path / "r.jsonl", tokenizer, True)}
    assert [found[prompt.key].finish for prompt in prompts[:3]] == ["stop", "length", "stop"]
    assert found[prompts[1].key].completion_ids == whole[:3] and found[prompts[2].key].completion_ids == whole


def test_text_alone_is_encoded_by_the_template(tokenizer, prompts):
    assistant = prompts[0].record.messages[-1]
    text = f"[unused16] {assistant.reasoning} [unused17] {assistant.content}"
    item = rollout_of(Output(text, None, "stop", None), prompts[0], SAMPLING, tokenizer, None, Counter())
    assert item.completion_ids is None
    assert to_sample(item, tokenizer).ids.tolist() == chat.render(prompts[0].record, tokenizer).ids.tolist()


@pytest.mark.parametrize(("ids", "finish", "stop", "fault"), [
    ([20], "abort", None, "ended otherwise"),
    ([20], "stop", "\n", "ended otherwise"),
    ([20, 21], "stop", 21, "ended otherwise"),
    ([20], None, None, "ended otherwise"),
    ([130], "length", None, "no rollout"),
    ([], "length", None, "no rollout"),
    ([1, 20], "length", None, "no rollout"),
    (None, "length", None, "no rollout"),
])  # fmt: skip
def test_what_cannot_be_a_rollout(tokenizer, prompts, ids, finish, stop, fault):
    with pytest.raises(BadAnswer) as caught:
        rollout_of(Output("half \ud83d", ids, finish, stop), prompts[0], SAMPLING, tokenizer, None, Counter())
    assert caught.value.fault == fault


def test_a_stop_id_of_the_settings_cuts_without_finishing(tokenizer, prompts):
    sampling = replace(SAMPLING, stop_ids=[21])
    cut = rollout_of(Output("x", [20, 21], "stop", 21), prompts[0], sampling, tokenizer, None, Counter())
    assert (cut.finish, cut.completion_ids) == ("length", [20, 21])


def test_an_answer_to_another_prompt_or_tokenizer_is_refused(tokenizer, prompts, tmp_path):
    whole = label(prompts[0].record, tokenizer)
    body = {"choices": [{"text": "x", "token_ids": whole, "finish_reason": "stop", "prompt_token_ids": [1, 2]}]}
    named = {"custom_id": prompts[0].key, "response": {"status_code": 200, "body": body}}
    foreign = offline(prompts[0], (whole, "stop")) | {"tokenizer_sha256": "e" * 64}
    unknown = {"choices": [{**body["choices"][0], "prompt_token_ids": None}]}
    good = [offline(prompt, (whole, "stop")) for prompt in prompts[:2]]
    path = write(tmp_path / "a.jsonl", named, foreign, unknown, *good, good[0])
    found = import_rollouts([path], prompts[:2], SAMPLING, tokenizer, tmp_path / "r.jsonl")
    assert found["refused"] == {
        "about another prompt": 1, "another tokenizer": 1, "to no question of ours": 1, "repeated": 1
    }  # fmt: skip


def test_a_second_run_asks_for_the_same_and_each_sample_under_a_seed_of_its_own(records, tokenizer, prompts):
    """What was answered is known by the request, so it must not change from run to run."""
    again = prompts_of(records[:4], tokenizer, 2, seed=3)
    bodies, same = ([rollout_request(p, SAMPLING, tokenizer, "m") for p in found] for found in (prompts, again))
    assert bodies == same and len({body["seed"] for body in bodies}) == 8
    assert bodies[0] | {"seed": bodies[1]["seed"]} == bodies[1]
    other = rollout_request(prompts_of(records[:1], tokenizer, 1, seed=4)[0], SAMPLING, tokenizer, "m")
    assert other["seed"] != bodies[0]["seed"]
