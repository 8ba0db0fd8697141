"""A server of the completions endpoint in vLLM's form, in a thread, that fails as it is told to."""

import json
import threading
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

MODEL, LONGEST = "teacher-7b", 64


def log_softmax(logits_LV: np.ndarray) -> np.ndarray:
    """float64 [L, V] of any logits."""
    x_LV = np.asarray(logits_LV, np.float64)
    x_LV = x_LV - x_LV.max(1, keepdims=True)
    return x_LV - np.log(np.exp(x_LV).sum(1, keepdims=True))


def prompt_logprobs(ids: list[int], logp_LV: np.ndarray, top_k: int) -> list:
    """vLLM's form: null, then for each later token the prompt's own one and the K most probable, as said before it."""
    entries: list = [None]
    for token_id, logp_V in zip(ids[1:], logp_LV[:-1], strict=True):
        order = np.argsort(-logp_V, kind="stable")
        wanted = dict.fromkeys([token_id, *order[:top_k].tolist()])  # its own one comes first
        rank = {int(found): place + 1 for place, found in enumerate(order)}
        entries.append(
            {
                str(found): {"logprob": float(np.float32(logp_V[found])), "rank": rank[found], "decoded_token": "x"}
                for found in wanted
            }
        )
    return entries


def answer_to(body: dict, logits, complete) -> dict:
    """The answer to a request: `logits(ids)` [L, V] for top-k, `complete(body)` (ids, finish, stop) for completions."""
    ids = body["prompt"]
    choice = {"index": 0, "prompt_token_ids": list(ids), "prompt_logprobs": None, "logprobs": None}
    if "prompt_logprobs" in body:
        entries = prompt_logprobs(ids, log_softmax(logits(ids)), body["prompt_logprobs"])
        choice |= {"text": "x", "token_ids": [0], "finish_reason": "length", "stop_reason": None}
        choice["prompt_logprobs"] = entries
    else:
        found, finish, stop = complete(body)
        choice |= {"text": "x", "token_ids": found, "finish_reason": finish, "stop_reason": stop}
    return {"id": "cmpl-1", "object": "text_completion", "model": MODEL, "choices": [choice]}


class FakeServer(ThreadingHTTPServer):
    """faults: prompt (tuple of ids) to the faults of its next answers, in order; "for ever" repeats the one before.

    asked: how often each prompt was asked for; bodies and headers: of every request, in order; most: the largest number
    of requests under way at once.
    """

    daemon_threads = True

    def __init__(self, logits, complete=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.logits, self.complete = logits, complete
        self.faults: dict[tuple, list[str]] = defaultdict(list)
        self.asked: Counter = Counter()
        self.listed = 0  # times that the list of models was asked for
        self.bodies, self.headers = [], []
        self.now = self.most = 0
        self.delay = 0.0
        self.models = [{"id": MODEL, "max_model_len": LONGEST}]
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the tests."""


@contextmanager
def serving(logits, complete=None):
    """A running FakeServer."""
    server = FakeServer(logits, complete)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.server.listed += 1
        self.send(200, json.dumps({"object": "list", "data": self.server.models}), {})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = tuple(body["prompt"])
        with server.lock:
            server.asked[key] += 1
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.now += 1
            server.most = max(server.most, server.now)
            faults = server.faults[key]
            fault = faults[0] if faults else ""
            if faults[1:2] != ["for ever"]:
                del faults[:1]
        time.sleep(server.delay)
        with server.lock:
            server.now -= 1  # before the answer: a client that has it may ask the next at once
        self.answer(fault, answer_to(body, server.logits, server.complete))

    def answer(self, fault: str, good: dict) -> None:
        status, _, after = fault.partition(" ")
        if status.isdigit():
            headers = {"Retry-After": after} if status == "429" else {}
            self.send(int(status), json.dumps({"error": {"message": f"told to say {fault}"}}), headers)
            return
        self.close_connection = fault in ("drop", "half")
        if fault == "drop":
            return
        if fault == "slow":
            time.sleep(0.6)
        (choice,) = good["choices"]
        if choice["prompt_logprobs"]:
            choice["prompt_logprobs"] = spoilt(fault, choice["prompt_logprobs"])
        if fault.startswith("other prompt"):
            choice["prompt_token_ids"] = None if fault.endswith("unnamed") else [*choice["prompt_token_ids"][:-1], 0]
        if fault == "two choices":
            good["choices"].append(choice)
        whole = json.dumps(good)
        offline = {"outputs": [choice], "prompt_logprobs": choice["prompt_logprobs"]}
        texts = {"truncated": whole[:40], "half": whole[:30], "html": "<html>"}
        texts |= {"array": json.dumps([choice]), "offline form": json.dumps(offline)}
        self.send(200, texts.get(fault, whole), {"Content-Length": str(len(whole))} if fault == "half" else {})

    def send(self, status: int, text: str, headers: dict) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def spoilt(fault: str, entries: list) -> list:
    """`entries`, of which the last or all are something that no teacher would say."""
    last = entries[-1]
    first, own = next(iter(last.items()))
    least = min(last, key=lambda name: last[name]["logprob"])
    ends = {
        "fewer": {first: own},
        "range": last | {"4000": own},
        "nan": last | {first: {"logprob": float("nan")}},
        "null": None,
        "above": {name: {"logprob": -0.1} for name in last},
        "logits": last | {least: {"logprob": 7.5}},
        "names": last | {"token_id:5": own},
    }
    wholes = {
        "longer": [*entries, last],
        "shorter": [entries[0], *entries[2:]],
        "unshifted": [last, *entries[1:]],
        "other prompt, unnamed": [None] + [{str(39 - int(i)): v for i, v in e.items()} for e in entries[1:]],
    }
    return [*entries[:-1], ends[fault]] if fault in ends else wholes.get(fault, entries)
