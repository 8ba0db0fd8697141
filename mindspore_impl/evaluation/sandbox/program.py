"""The two sides of a run: `serve` holds the program, `judge` the tests, each in its own isolated process.

The program is never in the process that decides: it cannot change the tests, and nothing that it prints, patches or
exits with is a verdict. The names that the tests take from it are proxies for calls to the other side.
"""

import builtins
import contextlib
import operator
import sys
import types
from functools import partial, partialmethod
from importlib.machinery import SourceFileLoader

from mindspore_impl.evaluation.sandbox.exchange import Channel, Ended, decode, encode, update

_OPERATIONS = {
    "call": operator.call, "getattr": getattr, "setattr": setattr, "getitem": operator.getitem,
    "contains": operator.contains, "iter": iter, "next": next, "len": len, "str": str, "bool": bool,
}  # fmt: skip


class _Text(SourceFileLoader):
    """Load a module from its `text`, without bytecode files."""

    text: str

    def get_data(self, path: str) -> bytes:
        return self.text.encode()

    def path_stats(self, path: str) -> dict:
        raise OSError("the source has no modification time")


def _load(name: str, text: str, names: dict) -> types.ModuleType:
    """Run `text` as the new module `name`, in which `names` are defined."""
    module = sys.modules[name] = types.ModuleType(name)
    module.__loader__ = _Text(name, f"<{name}>")
    module.__loader__.text = text
    vars(module).update(names)
    module.__loader__.exec_module(module)
    return module


# Side of the program


def serve(handle: int) -> None:
    """Load the program that the other side sends, then answer its requests until it is gone."""
    channel, held = Channel(handle, handle), []  # held[0]: the program

    def kept(value) -> list:
        held.append(value)
        return ["handle", len(held) - 1, type(value).__name__]

    while True:
        try:
            request = channel.receive()
        except Ended:
            return
        try:
            if request["do"] == "load":
                held.append(_load(request["name"], request["text"], {}))
                answer = {"value": None}
            else:
                answer = _answer(request, held, kept)
        except BaseException as error:  # SystemExit and KeyboardInterrupt too
            code = getattr(error, "code", None) if isinstance(error, SystemExit) else None
            answer = {"error": [type(error).__name__, _text_of(error), code if type(code) in (int, str) else None]}
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):  # the program may have closed or replaced it
                stream.flush()
        try:
            channel.send(answer)
        except ValueError as error:
            channel.send({"error": ["ValueError", str(error), None]})


def _answer(request: dict, held: list, kept) -> dict:
    given = partial(decode, handle=lambda rest: held[rest[0]])
    arguments = [given(value) for value in request["arguments"]]
    named = {name: given(value) for name, value in request["named"].items()}
    value = _OPERATIONS[request["do"]](held[request["target"]], *arguments, **named)
    changed = {}
    for index, (argument, before) in enumerate(zip(arguments, request["arguments"], strict=True)):
        if isinstance(argument, set):  # its order says nothing
            is_changed = argument != given(before)
        else:
            is_changed = isinstance(argument, list | dict | bytearray) and encode(argument, kept) != before
        if is_changed:
            changed[index] = encode(argument, kept)
    return {"value": encode(value, kept), "changed": changed}


def _text_of(error: BaseException) -> str:
    try:
        return str(error)[:2000]
    except BaseException:
        return ""


# Side of the tests


class ProgramError(Exception):
    """An exception of the program that is not a built-in type."""


class Remote:
    """Proxy of an object that stays in the program: can be called, read, counted and iterated.

    Compares by identity and has no arithmetic, so that an object of the program cannot claim to equal the expected one.
    """

    def __init__(self, channel: Channel, number: int, kind: str):
        self.__dict__.update(_channel=channel, _number=number, _kind=kind)

    def _do(self, operation, /, *arguments, **named):
        """Do it with encoded arguments; changes made to them in place are copied back."""
        coded, named = [_sent(value) for value in arguments], {name: _sent(value) for name, value in named.items()}
        self._channel.send({"do": operation, "target": self._number, "arguments": coded, "named": named})
        answer = _without_error(self._channel.receive())
        for index, changed in answer.get("changed", {}).items():
            update(arguments[int(index)], _received(self._channel, changed))
        return _received(self._channel, answer.get("value"))

    __call__ = partialmethod(_do, "call")
    __getattr__ = partialmethod(_do, "getattr")
    __setattr__ = partialmethod(_do, "setattr")
    __getitem__ = partialmethod(_do, "getitem")
    __contains__ = partialmethod(_do, "contains")
    __iter__ = partialmethod(_do, "iter")
    __next__ = partialmethod(_do, "next")
    __len__ = partialmethod(_do, "len")
    __str__ = partialmethod(_do, "str")

    def __repr__(self):
        return f"<{self._kind} of the program>"

    def __bool__(self):
        return self._do("bool") if self._kind not in ("function", "type") else True


def _sent(value):
    def handle(value) -> list:
        if isinstance(value, Remote):
            return ["handle", value._number]
        raise TypeError(f"a test cannot pass a {type(value).__name__} to the program")

    return encode(value, handle)


def _received(channel: Channel, value):
    try:
        return decode(value, lambda rest: Remote(channel, int(rest[0]), str(rest[1])))
    except (ValueError, TypeError, IndexError, RecursionError, ArithmeticError) as error:
        raise channel.end("the program's answer is malformed") from error


def _without_error(answer) -> dict:
    """Return the program's answer; raise its exception here."""
    if not isinstance(answer, dict):
        raise Ended("the program's answer is malformed")
    if "error" not in answer:
        return answer
    name, text, code = answer["error"]
    if name == "SystemExit":
        raise SystemExit(code)
    kind = getattr(builtins, str(name), None)
    error = ProgramError(f"{name}: {text}")
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError):  # such as UnicodeDecodeError, which needs more arguments
            error = kind(text)
    raise error


def judge(post: int, handle: int) -> None:
    """Receive a job from `post`, run its checks against the program behind `handle`, and post the verdict."""
    post, channel = Channel(post, post), Channel(handle, handle)
    job = post.receive()
    status, error = _verdict(job, channel)
    verdict = {"status": status, "error": error}
    if channel.ended:  # even if a test caught it
        verdict = {"status": "ended", "error": channel.ended}
    post.send({"token": job["token"]} | verdict)


def _verdict(job: dict, channel: Channel) -> tuple[str, str]:
    checks, names = job["checks"], {}
    try:
        channel.send({"do": "load", "name": "program" if checks else "__main__", "text": job["source"]})
        _without_error(channel.receive())
        for name in job["names"]:
            try:
                names[name] = Remote(channel, 0, "module")._do("getattr", name)
            except AttributeError:
                return "failed", f"the program defines no {name!r}"
        _load("checks", checks, names)
    except Ended as error:
        return "ended", str(error)
    except MemoryError:
        return "memory", "MemoryError"
    except SystemExit as error:
        return ("failed", f"SystemExit: {error.code}") if checks or error.code not in (None, 0) else ("passed", "")
    except BaseException as error:
        return "failed", _described(error, checks)
    return "passed", ""


def _described(error: BaseException, checks: str) -> str:
    """The exception in one line, with the line of the checks that raised it."""
    text = f"{type(error).__name__}: {_text_of(error)}".removesuffix(": ")
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<checks>":
            line = trace.tb_lineno
        trace = trace.tb_next
    if line is None:
        return text
    return f"{text} at: {checks.splitlines()[line - 1].strip()[:500]}"
