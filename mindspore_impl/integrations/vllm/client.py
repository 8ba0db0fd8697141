"""HTTP client of an OpenAI-compatible server: bounded concurrency, retries, and a key that is never shown.

http.client follows no redirect (a key would follow it to another host) and reads no proxy from the environment. A
question is asked again after a fault that may pass, with waits that double, are shortened at random (by a seed) and
respect Retry-After. When nothing succeeds any more, all stops: the same command continues later.
"""

import http.client
import json
import math
import queue
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from mindspore_impl import runtime
from mindspore_impl.errors import UserError
from mindspore_impl.integrations.vllm.answers import BadAnswer, counted

LARGEST_ANSWER = 1 << 30  # bytes
STOP_AT_ONCE = {300, 301, 302, 303, 307, 308, 401, 403, 404, 405}  # no other question would fare better
NEVER_AGAIN = {400, 413, 422}  # this question would not fare better


@dataclass(frozen=True)
class Server:
    """Where and how to ask. Times in seconds; timeout is that of one whole try."""

    url: str  # of the API, such as http://host:8000/v1
    model: str = ""
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 300.0
    in_flight: int = 16  # questions under way at once
    retries: int = 6  # tries after the first one
    backoff: float = 0.5  # before the second try; each later wait is twice as long
    longest_wait: float = 60.0  # of a backoff, and the most that Retry-After is obeyed for
    seed: int = 0
    limit: int | None = None  # tokens that the model takes; None: not asked yet (see `named`)


@dataclass(frozen=True)
class Question:
    """key: the custom_id under which its answer is kept; body: the JSON of the request."""

    key: str
    body: dict


class Failure(Exception):
    """A try without an answer. kind: for counting; wait: what the server asks for, in seconds."""

    def __init__(self, kind: str, detail: str, wait: float = 0.0, again: bool = True, stop: bool = False):
        super().__init__(f"{kind}: {detail}")
        self.kind, self.wait, self.again, self.stop = kind, wait, again, stop


def check_url(url: str) -> str:
    """The API's address without a closing slash; a bare host gets /v1. Raises UserError for any but a plain http(s)."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a bracket that never closes, a port that is no number
        fits = False
    if not fits or parts.username or parts.password or parts.query or parts.fragment:
        shown = url if "@" not in url else "the address"  # it may hold a password
        form = "http://HOST[:PORT][/PATH] or https://..., without a user, a query or a fragment"
        raise UserError(f"--url: {shown} must be {form}; a key comes by --api-key-env NAME")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


def resolve_model(server: Server, longest: int) -> Server:
    """`server` with the name of the model to ask and how many tokens it takes; the server itself is asked once.

    Raises UserError when the server cannot be reached, serves no such model, or takes no sequence of `longest` tokens.
    """
    if server.limit is None:
        try:
            models = {entry["id"]: entry for entry in request(server, "/models", None)["data"]}
        except Failure as error:
            raise UserError(f"{server.url}: {error}; is the server up, and is this the address of its API?") from error
        except (KeyError, TypeError) as error:
            raise UserError(f"{server.url}/models: not the list of an OpenAI-compatible server") from error
        names = ", ".join(sorted(map(str, models)))
        if server.model not in models and (server.model or len(models) != 1):
            raise UserError(f"--model: {server.model or 'none'} is given, the server has: {names}; name one of them")
        name = server.model or next(iter(models))
        limit = models[name].get("max_model_len")
        server = replace(server, model=name, limit=limit if type(limit) is int else sys.maxsize)
    if longest > server.limit:
        fault = f"{server.model} takes {server.limit} tokens and the longest question needs {longest}"
        remedy = f"start the server with --max-model-len {longest}, or leave out what is longer"
        raise UserError(f"{server.url}: {fault}; {remedy}")
    return server


def request(server: Server, path: str, body: dict | None):
    """One try: the JSON that the server answers to a GET (no body) or POST. Raises Failure for everything else."""
    parts, until = urlsplit(server.url), time.monotonic() + server.timeout
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=server.timeout)
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if server.api_key:
        headers["Authorization"] = f"Bearer {server.api_key}"
    try:
        data = None if body is None else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", parts.path + path, data, headers)
        response = connection.getresponse()
        content = _read(connection, response, until)
    except TimeoutError as error:
        raise Failure("timeout", f"no whole answer within {server.timeout:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise Failure("connection", str(error) or type(error).__name__) from error
    finally:
        connection.close()
    if response.status != 200:
        raise _refused(response, content, server.api_key)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Failure("not JSON", str(error)) from error


def _read(connection, response, until: float) -> bytes:
    """The body; a server that lets it drip runs into the time of the whole try."""
    content = bytearray()
    while (left := until - time.monotonic()) > 0:
        if connection.sock is not None:
            connection.sock.settimeout(left)
        part = response.read1(1 << 20)
        content += part
        if len(content) > LARGEST_ANSWER:
            raise http.client.HTTPException(f"an answer of more than {LARGEST_ANSWER} bytes")
        if not part:
            if response.length:  # promised and not sent
                raise http.client.IncompleteRead(b"", response.length)
            return bytes(content)
    raise TimeoutError


def _refused(response, content: bytes, key: str | None) -> Failure:
    status = response.status
    detail = content[: 1 << 16].decode("utf-8", "replace")
    try:
        value = json.loads(content)
        detail = str((value.get("error") or value).get("message") or detail)
    except (ValueError, AttributeError, RecursionError):
        pass
    if key:  # some servers repeat it; a cut before this could leave half of it
        detail = detail.replace(key, "***")
    again = status not in NEVER_AGAIN | STOP_AT_ONCE
    return Failure(f"HTTP {status}", detail[:300], _retry_after(response), again, status in STOP_AT_ONCE)


def _retry_after(response) -> float:
    """Seconds of the header Retry-After, a number or a date; 0 where it is absent or means nothing."""
    text = response.getheader("Retry-After") or ""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError, IndexError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def ask_all(
    server: Server,
    questions: Iterable[Question],
    total: int,
    check: Callable[[Question, dict], None],
    keep: Callable[[Question, dict], None],
    title: str,
) -> tuple[Counter, list[str]]:
    """Ask every question, at most `server.in_flight` at once, and hand each good answer to `keep`, in this thread.

    Args:
        server: where and how to ask.
        questions: drawn as room comes free.
        total: how many there are, for the progress bar.
        check: raises BadAnswer for an answer that cannot be used, in an asking thread; the question is asked again.
        keep: takes a question and its answer.
        title: of the progress bar.

    Returns the faults by kind, of all tries, and a message for each question that was given up. Stops early, once what
    is under way has ended, when the server refuses all questions or `in_flight` of them in a row were given up.
    """
    done: queue.SimpleQueue = queue.SimpleQueue()
    stop, questions = threading.Event(), iter(questions)
    faults: Counter = Counter()
    given_up: list[str] = []
    under_way = in_a_row = 0

    def work(question: Question) -> None:
        try:
            done.put((question, *_ask(server, question, check, stop)))
        except BaseException as error:  # a fault of ours must reach the main thread
            done.put((question, None, error))

    try:
        with runtime.progress_bar(total, title, "answer") as bar:
            while True:
                while under_way < server.in_flight and not stop.is_set() and (question := next(questions, None)):
                    # A daemon: on Ctrl-C nobody waits for what is under way.
                    threading.Thread(target=work, args=(question,), daemon=True).start()
                    under_way += 1
                if not under_way:
                    return faults, given_up
                question, body, failed = done.get()
                under_way -= 1
                if isinstance(failed, BaseException):
                    raise failed
                faults.update(failure.kind for failure in failed)
                if body is not None:
                    keep(question, body)
                    in_a_row = 0
                    bar.update(1)
                    continue
                given_up.append(f"{question.key[:40]}: {failed[-1]} (after {len(failed)} tries)")
                in_a_row += 1
                if failed[-1].stop or in_a_row >= server.in_flight:
                    stop.set()
                bar.set_postfix_str(counted(faults)[:60])
    finally:
        stop.set()


def _ask(
    server: Server, question: Question, check: Callable[[Question, dict], None], stop: threading.Event
) -> tuple[dict | None, list[Failure]]:
    """The answer, or None once the question is given up or everything stops; and the failed tries."""
    jitter = random.Random(f"{server.seed} {question.key}")  # of its own, so that threads do not decide the waits
    failed: list[Failure] = []
    for attempt in range(server.retries + 1):
        try:
            body = request(server, "/completions", question.body)
            check(question, body)
            return body, failed
        except BadAnswer as error:
            failure = Failure(error.fault, str(error))
        except Failure as error:
            failure = error
        failed.append(failure)
        if failure.stop or not failure.again or attempt == server.retries:
            break
        wait = min(server.backoff * 2**attempt, server.longest_wait) * jitter.uniform(0.5, 1.0)
        if stop.wait(max(wait, min(failure.wait, server.longest_wait))):
            break
    return None, failed
