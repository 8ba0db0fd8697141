"""Asking a server that fails: what is wrong is refused and counted, nothing is lost, and a second run completes."""

import contextlib
import json
import socket
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mindspore_impl import files
from mindspore_impl.data.teacher_store import StoreReader, sample_key
from mindspore_impl.errors import UserError
from mindspore_impl.integrations.vllm import asking, client
from mindspore_impl.integrations.vllm.client import Question, Server, ask_all, check_url, resolve_model
from mindspore_impl.integrations.vllm.topk import external_header, import_topk, topk_request
from mindspore_impl.text.chat import Sample
from tests.integrations.fake_server import LONGEST, MODEL, log_softmax, serving

VOCAB, TOP_K = 40, 4
HEADER = external_header("t" * 64, "k" * 64, VOCAB, TOP_K, 1.0)


def logits_of(ids):
    """Logits [L, V] that depend on the whole prefix."""
    return np.stack([np.random.default_rng(ids[: t + 1]).normal(0, 3, VOCAB) for t in range(len(ids))])


def make_samples(count):
    rng = np.random.default_rng(0)
    masks = [np.array([False, False, True, True, number % 2 == 0, True]) for number in range(count)]
    return [Sample(rng.integers(0, VOCAB, 6).astype(np.int32), mask, f"r{n}", "fast") for n, mask in enumerate(masks)]


SAMPLES = make_samples(5)
FIRST = tuple(SAMPLES[0].ids.tolist())


def server_at(fake, **changes) -> Server:
    return Server(**{"url": fake.url, "timeout": 3.0, "in_flight": 3, "retries": 1, "backoff": 0.01} | changes)


def check_store(folder):
    """The store holds the TOP_K most probable of every sample."""
    reader = StoreReader(folder)
    assert reader.sequences == len(SAMPLES)
    for sample in SAMPLES:
        before = [t - 1 for t in range(1, len(sample.ids)) if sample.supervised[t]]
        logp_SV = log_softmax(logits_of(sample.ids.tolist()))[before]
        wanted_SK = np.argsort(-logp_SV, axis=1)[:, :TOP_K]
        ids_SK, logp_SK, _ = reader.lookup(sample.ids, sample.supervised)
        np.testing.assert_array_equal(ids_SK, wanted_SK)
        np.testing.assert_allclose(logp_SK, np.take_along_axis(logp_SV, wanted_SK, 1), atol=5e-3)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The lines of a run in which nothing fails, with one question more than SAMPLES."""
    path = tmp_path_factory.mktemp("answers") / "a.jsonl"
    with serving(logits_of) as fake:
        asking.ask_topk(server_at(fake), make_samples(6), HEADER, path)
    return path.read_bytes().splitlines(keepends=True)


# fault of the server: the kind under which it is counted
FAULTS = {
    "500": "HTTP 500", "503": "HTTP 503", "429 0.01": "HTTP 429", "400": "HTTP 400", "drop": "connection",
    "half": "connection", "slow": "timeout", "truncated": "not JSON", "html": "not JSON",
    "other prompt": "about another prompt", "other prompt, unnamed": "about another prompt",
    "fewer": "fewer than K ids", "range": "id out of range", "nan": "NaN", "null": "null entry",
    "longer": "of another length", "shorter": "of another length", "above": "masses sum to more than 1",
    "logits": "log-probability above 0", "unshifted": "not shifted as vLLM's", "names": "another form",
    "array": "another form", "offline form": "another form",
}  # fmt: skip


def test_the_readme_counts_the_faults():
    text = (Path(asking.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert f"fails in {len(FAULTS)} ways" in text


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_and_a_second_run_asks_only_for_what_is_missing(fault, tmp_path, capsys):
    path = tmp_path / "answers.jsonl"
    with serving(logits_of) as fake:
        fake.faults[FIRST] = [fault, "for ever"]
        server = server_at(fake, timeout=0.3 if fault == "slow" else 3.0)
        with pytest.raises(UserError, match="1 of 5 "):
            asking.ask_topk(server, SAMPLES, HEADER, path)
        tries = 1 if fault == "400" else 2
        assert f"failed tries: {tries} x {FAULTS[fault]}" in capsys.readouterr().out
        assert len(path.read_text().splitlines()) == 4
        with pytest.raises(UserError, match="1 of 5 .*'r0'"):
            import_topk([path], SAMPLES, HEADER, tmp_path / "store")
        fake.faults.clear()
        fake.asked.clear()
        asking.ask_topk(server_at(fake), SAMPLES, HEADER, path)
        assert fake.asked == {FIRST: 1}
    import_topk([path], SAMPLES, HEADER, tmp_path / "store")
    check_store(tmp_path / "store")


def test_only_what_is_needed_of_an_answer_is_kept(answers):
    line = next(line for line in map(json.loads, answers) if line["custom_id"] == sample_key(SAMPLES[0].ids))
    entries = line["response"]["body"]["choices"][0]["prompt_logprobs"]
    assert [entry is not None for entry in entries] == [False, *SAMPLES[0].supervised[1:].tolist()]
    assert all(type(logp) is float for entry in entries if entry for logp in entry.values())


def test_faults_that_pass_are_survived_and_counted(tmp_path, capsys):
    with serving(logits_of) as fake:
        fake.faults[FIRST] = ["500", "drop", "truncated", "nan", "429 0"]
        asking.ask_topk(server_at(fake, retries=5), SAMPLES, HEADER, tmp_path / "a.jsonl")
        assert fake.asked[FIRST] == 6
    told = capsys.readouterr().out
    for kind in ("HTTP 500", "connection", "not JSON", "NaN", "HTTP 429"):
        assert f"1 x {kind}" in told


def test_a_half_written_line_is_cut_and_asked_again(answers, tmp_path):
    path, lost = tmp_path / "a.jsonl", json.loads(answers[-1])["custom_id"]
    path.write_bytes(b"".join(answers)[:-25])
    with serving(logits_of) as fake:
        asking.ask_topk(server_at(fake), make_samples(6), HEADER, path)
        assert sum(fake.asked.values()) == 1 and sample_key(np.array(next(iter(fake.asked)))) == lost
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[:5] == answers[:5] and len(lines) == 6
    assert import_topk([path], make_samples(6), HEADER, tmp_path / "store")["refused"] == {}


def test_answers_to_other_settings_and_damaged_lines_are_asked_again(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    with serving(logits_of) as fake:
        asking.ask_topk(server_at(fake), SAMPLES, external_header("t" * 64, "k" * 64, VOCAB, 2, 1.0), path)
        with open(path, "a") as file:
            file.write('{"a": 1}\nnonsense\n')
            file.write('{"custom_id": [1], "request_sha256": "x", "response": {"body": {}}}\n')
            kept = json.loads(path.read_text().splitlines()[0])
            sample = next(sample for sample in SAMPLES if sample_key(sample.ids) == kept["custom_id"])
            body = topk_request(sample, TOP_K, MODEL)
            changed = {"request_sha256": files.sha256_json(body), "response": {"body": [1]}}
            file.write(json.dumps(kept | changed) + "\n")
        fake.asked.clear()
        asking.ask_topk(server_at(fake), SAMPLES, HEADER, path)
        assert sum(fake.asked.values()) == 5
    told = capsys.readouterr().out
    assert "5 x to another request" in told and "3 x not a line of ours" in told and "1 x another form" in told
    summary = import_topk([path], SAMPLES, HEADER, tmp_path / "store")  # the first five lines hold too few ids
    assert summary["refused"]["fewer than K ids"] == 5
    check_store(tmp_path / "store")


def test_repeated_and_foreign_answers_are_left_and_their_order_does_not_matter(answers, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"".join(answers))
    (tmp_path / "b.jsonl").write_bytes(b"".join(reversed(answers * 2)))
    one, two = (tmp_path / "one", tmp_path / "two")
    assert import_topk([tmp_path / "a.jsonl"], SAMPLES, HEADER, one)["refused"] == {"to no question of ours": 1}
    refused = import_topk([tmp_path / "b.jsonl"], SAMPLES, HEADER, two)["refused"]
    assert refused == {"repeated": 5, "to no question of ours": 2}
    check_store(one)
    assert StoreReader(one).shards == StoreReader(two).shards


def test_requests_in_flight_are_bounded_and_questions_drawn_as_room_comes_free():
    drawn, kept = [], []

    def questions():
        for number in range(9):
            drawn.append((number, len(kept)))
            yield Question(str(number), {"prompt": [number, 1, 2], "prompt_logprobs": 2})

    with serving(logits_of) as fake:
        fake.delay = 0.03
        ask_all(server_at(fake), questions(), 9, lambda *_: None, lambda question, _: kept.append(question.key), "test")
    assert fake.most <= 3 and sorted(kept) == [str(number) for number in range(9)]
    assert all(number - answered < 3 for number, answered in drawn)


# Refused: only those under way when the first answer came. Failing: until several in a row are given up.
@pytest.mark.parametrize(("status", "most"), [("401", 6), ("403", 6), ("404", 6), ("302", 6), ("500", 19)])
def test_a_server_that_refuses_or_fails_everybody_is_not_asked_for_all(tmp_path, status, most):
    samples = make_samples(30)
    with serving(logits_of) as fake:
        for sample in samples:
            fake.faults[tuple(sample.ids.tolist())] = [status, "for ever"]
        with pytest.raises(UserError, match=f"30 of 30 .*HTTP {status}"):
            asking.ask_topk(server_at(fake), samples, HEADER, tmp_path / "a.jsonl")
        assert sum(fake.asked.values()) <= most
    mine = [thread for thread in threading.enumerate() if thread.name == "asking"]
    for thread in mine:
        thread.join(5)
    assert not any(thread.is_alive() for thread in mine)


def test_waits_double_are_seeded_and_obey_retry_after(monkeypatch):
    waits, server = [], Server("http://h/v1", retries=6, backoff=1.0, longest_wait=20.0)
    monkeypatch.setattr(threading.Event, "wait", lambda self, seconds=None: waits.append(seconds))

    def waited(*failures):
        left = iter([client.Failure(*failure) for failure in failures])
        monkeypatch.setattr(client, "request", lambda *_: (_ for _ in ()).throw(next(left)))
        waits.clear()
        with pytest.raises((StopIteration, RuntimeError)):
            client._ask(server, Question("a", {}), lambda *_: None, threading.Event())
        return list(waits)

    failed = [("HTTP 500", "", 0.0)] * 4
    first = waited(*failed, ("HTTP 429", "", 9.0), ("HTTP 429", "", 1e9))
    assert all(0.5 * 2**n <= first[n] <= 2**n for n in range(4))
    assert 9.0 <= first[4] <= 16 and first[5] == 20.0  # asked for more than anybody waits
    assert waited(*failed) == first[:4]


@pytest.mark.parametrize("text", ["7", "-3", "nan", "inf", "soon", "", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_retry_after_is_read(text):
    assert client._retry_after(SimpleNamespace(getheader=lambda _: text)) == (7.0 if text == "7" else 0.0)


def test_a_key_that_the_server_repeats_is_not_shown(capsys):
    with serving(logits_of) as fake:
        fake.faults[FIRST] = ["401 s3cret"]
        question = Question("a", {"prompt": list(FIRST), "prompt_logprobs": 2})
        server = server_at(fake, api_key="s3cret")
        _, given_up = ask_all(server, [question], 1, lambda *_: None, lambda *_: None, "test")
    assert "told to say 401 ***" in given_up[0] and "s3cret" not in given_up[0]


def test_nor_is_a_part_of_it_where_a_long_message_is_cut():
    response = SimpleNamespace(status=401, getheader=lambda _: None)
    for length in range(270, 300, 2):
        text = "x" * length + "s3cret" + "y" * 300
        for content in (json.dumps({"error": {"message": text}}), text):
            failure = str(client._refused(response, content.encode(), "s3cret"))
            assert "s3c" not in failure and len(failure) <= 310


def test_the_request_names_every_setting_and_the_key_stays_in_its_header(tmp_path):
    path = tmp_path / "a.jsonl"
    with serving(logits_of) as fake:
        server = server_at(fake, api_key="s3cret")
        asking.ask_topk(server, SAMPLES, HEADER, path)
        body, headers = fake.bodies[0], fake.headers[0]
    assert headers["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in path.read_text() + repr(server) + json.dumps(body)
    assert body["prompt_logprobs"] == TOP_K and body["model"] == MODEL and body["add_special_tokens"] is False
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert {key: body[key] for key in neutral} == neutral


@pytest.mark.parametrize("url", [
    "ftp://host/v1", "file:///etc/passwd", "host:8000", "http://", "http://user:pass@host/v1", "http://host/v1?key=1",
    "http://host:port/v1", "http://host/v1#x", "http://[::1/v1", "http://host]/v1", "javascript:alert(1)",
])  # fmt: skip
def test_only_plain_http_addresses(url):
    with pytest.raises(UserError, match="--url") as caught:
        check_url(url)
    assert "pass@" not in str(caught.value)
    assert check_url("http://host:8000") == "http://host:8000/v1" == check_url("http://host:8000/v1/")
    assert check_url("https://host/api/v1") == "https://host/api/v1"


def test_the_model_and_its_length_are_looked_at_first(tmp_path):
    with serving(logits_of) as fake:
        server = resolve_model(server_at(fake), LONGEST)
        assert server.model == MODEL and resolve_model(server, 1) is server and fake.listed == 1
        for changes, longest, models, words in (
            ({}, LONGEST + 1, ["teacher-7b"], f"teacher-7b .*{LONGEST} .*65"),
            ({"model": "other"}, 1, ["teacher-7b"], "--model: other .*teacher-7b"),
            ({}, 1, ["teacher-7b", "second"], "--model: .*second, teacher-7b"),
            ({}, 1, None, "/models"),
        ):
            fake.models = [{"id": name, "max_model_len": LONGEST} for name in models] if models else ["x"]
            with pytest.raises(UserError, match=words):
                resolve_model(server_at(fake, **changes), longest)
        with pytest.raises(UserError, match=f"{LONGEST} tokens"):
            resolve_model(server, LONGEST + 1)
        url = fake.url
    with pytest.raises(UserError, match="connection"):
        resolve_model(Server(url, timeout=0.3), 1)


def test_two_processes_do_not_write_one_file(tmp_path):
    path = tmp_path / "a.jsonl"
    with serving(logits_of) as fake, asking._opened(path), pytest.raises(UserError, match="a.jsonl"):
        asking.ask_topk(server_at(fake), SAMPLES, HEADER, path)


def test_a_fault_of_ours_is_not_swallowed(tmp_path):
    def broken(*_):
        raise ZeroDivisionError

    with serving(logits_of) as fake, pytest.raises(ZeroDivisionError):
        questions = iter([Question("a", {"prompt": [1, 2], "prompt_logprobs": 2})])
        ask_all(server_at(fake), questions, 1, broken, lambda *_: None, "test")


def test_a_dripping_server_runs_into_the_timeout():
    def drip():
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(40):
                connection.sendall(b" ")
                threading.Event().wait(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, daemon=True).start()
        server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", timeout=0.3, retries=0, in_flight=1)
        faults, given_up = ask_all(server, [Question("a", {"prompt": []})], 1, lambda *_: None, lambda *_: None, "test")
    assert faults == Counter({"timeout": 1}) and "0.3 s" in given_up[0]
