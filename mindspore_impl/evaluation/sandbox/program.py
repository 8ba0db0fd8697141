"""The two sides of a run: `serve` holds the program, `judge` the tests, each in its own isolated process.

The program is never in the process that decides: it cannot change the tests, and nothing that it prints, patches or
exits with is a verdict. The names that the tests take from it are proxies for calls to the other side.
"""

import builtins
import contextlib
import importlib.machinery
import operator
import sys
import types

from mindspore_impl.evaluation.sandbox.exchange import Channel, Ended, decode, encode, update

_OPERATIONS = {
    "getattr": getattr, "setattr": setattr, "getitem": operator.getitem, "contains": operator.contains,
    "iter": iter, "next": next, "len": len, "str": str, "bool": bool,
}  # fmt: skip


class _Text(importlib.machinery.SourceFileLoader):
    """Load a module from a string, without bytecode files."""

    def __init__(self, name: str, text: str):
        super().__init__(name, f"<{name}>")
        self.text = text

    def get_data(self, path: str) -> bytes:
        if path != self.path:
            raise OSError("only the source is available")
        return self.text.encode()

    def path_stats(self, path: str) -> dict:
        raise OSError("the source has no modification time")


def _module(name: str, text: str) -> tuple[types.ModuleType, _Text]:
    loader = _Text(name, text)
    module = types.ModuleType(name)
    module.__loader__ = loader
    sys.modules[name] = module
    return module, loader


# Side of the program


def serve(handle: int) -> None:
    """Load the program that the other side sends, then answer its requests until it is gone."""
    channel, held = Channel(handle, handle), []

    def kept(value) -> list:
        held.append(value)
        return ["handle", len(held) - 1, type(value).__name__]

    program = None
    while True:
        try:
            request = channel.receive()
        except Ended:
            return
        try:
            if request["do"] == "load":
                program, loader = _module(request["name"], request["text"])
                loader.exec_module(program)
                answer = {"value": None}
            else:
                answer = _answer(request, program, held, kept)
        except BaseException as error:  # SystemExit and KeyboardInterrupt too
            answer = {"error": [type(error).__name__, _text_of(error), _exit_code(error)]}
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):  # the program may have closed or replaced it
                stream.flush()
        try:
            channel.send(answer)
        except ValueError as error:
            channel.send({"error": ["ValueError", str(error), None]})


def _answer(request: dict, program: types.ModuleType, held: list, kept) -> dict:
    def given(value):
        return decode(value, lambda rest: held[rest[0]])

    if request["do"] == "name":
        if not hasattr(program, request["name"]):
            return {"absent": True}
        return {"value": encode(getattr(program, request["name"]), kept)}
    target, arguments = held[request["target"]], [given(value) for value in request["arguments"]]
    if request["do"] == "call":
        named = {name: given(value) for name, value in request["named"].items()}
        value = target(*arguments, **named)
        changed = {}
        for index, (argument, before) in enumerate(zip(arguments, request["arguments"], strict=True)):
            if isinstance(argument, set):  # its order says nothing
                is_changed = argument != given(before)
            else:
                is_changed = isinstance(argument, list | dict | bytearray) and encode(argument, kept) != before
            if is_changed:
                changed[index] = encode(argument, kept)
        return {"value": encode(value, kept), "changed": changed}
    return {"value": encode(_OPERATIONS[request["do"]](target, *arguments), kept)}


def _text_of(error: BaseException) -> str:
    try:
        return str(error)[:2000]
    except BaseException:
        return ""


def _exit_code(error: BaseException):
    code = getattr(error, "code", None)
    return code if isinstance(error, SystemExit) and type(code) in (int, str) else None


# Side of the tests


class ProgramError(Exception):
    """An exception of the program that is not a built-in type."""


class Remote:
    """Proxy of an object that stays in the program: can be called, read, counted and iterated.

    Compares by identity and has no arithmetic, so that an object of the program cannot claim to equal the expected one.
    """

    def __init__(self, channel: Channel, number: int, kind: str):
        self.__dict__.update(_channel=channel, _number=number, _kind=kind)

    def __call__(self, *arguments, **named):
        """Call it with encoded arguments; changes made to them in place are copied back."""
        coded = [encode(value, _sent) for value in arguments]
        answer = _ask(self._channel, "call", self._number, coded, {k: encode(v, _sent) for k, v in named.items()})
        for index, changed in answer.get("changed", {}).items():
            update(arguments[int(index)], _received(self._channel, changed))
        return _received(self._channel, answer.get("value"))

    def __getattr__(self, name):
        return self._do("getattr", name)

    def __setattr__(self, name, value):
        self._do("setattr", name, value)

    def __getitem__(self, key):
        return self._do("getitem", key)

    def __contains__(self, value):
        return self._do("contains", value)

    def __iter__(self):
        return self._do("iter")

    def __next__(self):
        return self._do("next")

    def __len__(self):
        return self._do("len")

    def __str__(self):
        return self._do("str")

    def __repr__(self):
        return f"<{self._kind} of the program>"

    def __bool__(self):
        return self._do("bool") if self._kind not in ("function", "type") else True

    def _do(self, operation, *arguments):
        answer = _ask(self._channel, operation, self._number, [encode(value, _sent) for value in arguments], {})
        return _received(self._channel, answer.get("value"))


def _sent(value) -> list:
    if isinstance(value, Remote):
        return ["handle", value._number]
    raise TypeError(f"a test cannot pass a {type(value).__name__} to the program")


def _received(channel: Channel, value):
    try:
        return decode(value, lambda rest: Remote(channel, int(rest[0]), str(rest[1])))
    except (ValueError, TypeError, IndexError, RecursionError, ArithmeticError) as error:
        raise channel.end("the program's answer is malformed") from error


def _ask(channel: Channel, operation: str, target: int, arguments: list, named: dict) -> dict:
    channel.send({"do": operation, "target": target, "arguments": arguments, "named": named})
    return _without_error(channel.receive())


def _without_error(answer) -> dict:
    """Return the program's answer; raise its exception here."""
    if not isinstance(answer, dict):
        raise Ended("the program's answer is malformed")
    if "error" not in answer:
        return answer
    name, text, code = answer["error"]
    kind = getattr(builtins, str(name), None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            error = kind(text)
        except TypeError:  # such as UnicodeDecodeError, which needs more arguments
            error = ProgramError(f"{name}: {text}")
    elif name == "SystemExit":
        error = SystemExit(code)
    else:
        error = ProgramError(f"{name}: {text}")
    raise error


def judge(post: int, handle: int) -> None:
    """Receive a job from `post`, run its checks against the program behind `handle`, and post the verdict."""
    post, channel = Channel(post, post), Channel(handle, handle)
    job = post.receive()
    verdict = _verdict(job, channel)
    if channel.ended:  # even if a test caught it
        verdict = {"status": "ended", "error": channel.ended}
    post.send({"token": job["token"]} | verdict)


def _verdict(job: dict, channel: Channel) -> dict:
    checks = job["checks"]
    try:
        channel.send({"do": "load", "name": "program" if checks else "__main__", "text": job["program"]})
        _without_error(channel.receive())
        module, loader = _module("checks", checks)
        for name in job["names"]:
            channel.send({"do": "name", "name": name})
            answer = _without_error(channel.receive())
            if "absent" in answer:
                return {"status": "failed", "error": f"the program defines no {name!r}"}
            setattr(module, name, _received(channel, answer.get("value")))
        loader.exec_module(module)
    except Ended as error:
        return {"status": "ended", "error": str(error)}
    except MemoryError:
        return {"status": "memory", "error": "MemoryError"}
    except SystemExit as error:
        if not checks and error.code in (None, 0):
            return {"status": "passed", "error": ""}
        return {"status": "failed", "error": f"SystemExit: {error.code}"}
    except BaseException as error:
        return {"status": "failed", "error": _described(error, checks)}
    return {"status": "passed", "error": ""}


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
