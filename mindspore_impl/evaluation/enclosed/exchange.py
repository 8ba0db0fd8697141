"""What goes between the process of the tests and the process of the program: frames of JSON with plain values in them.

Values travel as copies of Python's own plain types, whatever subclass the program made (its `__eq__` never decides a
test). Anything else stays where it is, and the other side gets a handle to it.
"""

import json
import os
import struct
from collections.abc import Callable

LARGEST = 64 << 20  # bytes of one message


class Ended(BaseException):
    """The other side is gone, or does not keep to the form. No `except Exception` of a test can swallow it."""


class Channel:
    """Messages over one socket or pair of pipes (file descriptors)."""

    def __init__(self, read: int, write: int):
        self.read, self.write, self.ended = read, write, ""

    def send(self, message) -> None:
        """Send one JSON value. Raises Ended; ValueError when it is too large or too deep."""
        try:
            data = json.dumps(message).encode()
        except RecursionError as error:
            raise ValueError("a value is nested too deeply, or contains itself") from error
        if len(data) > LARGEST:
            raise ValueError(f"a value takes {len(data) >> 20} MiB, more than {LARGEST >> 20}")
        data = memoryview(struct.pack("<I", len(data)) + data)
        try:
            while data:
                data = data[os.write(self.write, data) :]
        except OSError as error:
            raise self.end("the program is gone") from error

    def receive(self):
        """The next JSON value. Raises Ended."""
        size = struct.unpack("<I", self._exactly(4))[0]
        if size > LARGEST:
            raise self.end("the program's answer is too large")
        try:
            return json.loads(self._exactly(size))
        except (ValueError, RecursionError) as error:
            raise self.end("the program's answer has no known form") from error

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            block = os.read(self.read, min(size - len(data), 1 << 20))
            if not block:
                raise self.end("the program ended before the tests did")
            data += block
        return bytes(data)

    def end(self, reason: str) -> Ended:
        """Note why nothing can follow (the first reason stays), and give the exception to raise."""
        self.ended = self.ended or reason
        return Ended(self.ended)


def encode(value, handle: Callable[[object], list]):
    """`value` as JSON: numbers, text, true, false and null as they are, all else a list that begins with its kind.

    handle(value) -> the list for a value that is not plain; it may raise TypeError instead.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return ["int", hex(int.__index__(value))]
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, complex):
        return ["complex", complex.__repr__(value)]
    if isinstance(value, bytes | bytearray):
        return [("bytes" if isinstance(value, bytes) else "bytearray"), memoryview(value).hex()]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, *(encode(entry, handle) for entry in kind.__iter__(value))]
    if isinstance(value, dict):
        return ["dict", *([encode(key, handle), encode(entry, handle)] for key, entry in dict.items(value))]
    if isinstance(value, type) and value in _TYPES.values():
        return ["type", value.__name__]
    name = f"{type(value).__module__}.{type(value).__name__}"
    if name in _BY_TEXT:
        return [name, *_BY_TEXT[name][0](value)]
    return handle(value)


def decode(value, handle: Callable[[list], object]):
    """The value that `encode` was given; handle(list) -> what a handle stands for. Raises ValueError."""
    if not isinstance(value, list):
        return value
    kind, *rest = value
    if kind in _SIMPLE:
        return _SIMPLE[kind](rest[0])
    if kind in _COLLECTIONS:
        return _COLLECTIONS[kind](decode(entry, handle) for entry in rest)
    if kind == "dict":
        return {decode(key, handle): decode(entry, handle) for key, entry in rest}
    if kind in _BY_TEXT:
        return _BY_TEXT[kind][1](*rest)
    if kind == "type" and rest[0] in _TYPES:
        return _TYPES[rest[0]]
    if kind == "handle":
        return handle(rest)
    raise ValueError(f"no value is of the kind {kind!r}")


_TYPES = {t.__name__: t for t in (bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict)}
_COLLECTIONS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_SIMPLE = {
    "int": lambda text: int(text, 16),
    "complex": complex,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
}


def _decimal(text: str):
    import decimal

    return decimal.Decimal(text)


def _fraction(text: str):
    import fractions

    return fractions.Fraction(text)


def _range(start: int, stop: int, step: int):
    return range(start, stop, step)


_BY_TEXT = {
    "decimal.Decimal": (lambda value: [str(value)], _decimal),
    "fractions.Fraction": (lambda value: [str(value)], _fraction),
    "builtins.range": (lambda value: [value.start, value.stop, value.step], _range),
}


def update(target, changed) -> None:
    """Make the container `target` hold what `changed` holds: a program may change its arguments in place."""
    if isinstance(target, list | bytearray):
        target[:] = changed
    elif isinstance(target, dict | set):
        target.clear()
        target.update(changed)
