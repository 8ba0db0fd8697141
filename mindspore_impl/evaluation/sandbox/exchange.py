"""Wire format between the process of the tests and the process of the program: length-prefixed JSON.

Plain values are copied as Python's built-in types even when the program passes a subclass, so that the program's
`__eq__` never decides a test. All other objects stay where they are, and the other side gets a handle.
"""

import importlib
import json
import os
import struct
from collections.abc import Callable

MAX_MESSAGE = 64 << 20  # bytes


class Ended(BaseException):
    """The other side is gone or broke the protocol. Not an Exception, so that no test can swallow it."""


class Channel:
    """Messages over one socket or pair of pipes, given as file descriptors."""

    def __init__(self, read: int, write: int):
        self.read, self.write, self.ended = read, write, ""

    def send(self, message) -> None:
        """Send one JSON value. Raises Ended; ValueError when the value is too large or too deep."""
        try:
            data = json.dumps(message).encode()
        except RecursionError as error:
            raise ValueError("a value is nested too deeply, or contains itself") from error
        if len(data) > MAX_MESSAGE:
            raise ValueError(f"a value takes {len(data) >> 20} MiB, more than {MAX_MESSAGE >> 20}")
        data = memoryview(struct.pack("<I", len(data)) + data)
        try:
            while data:
                data = data[os.write(self.write, data) :]
        except OSError as error:
            raise self.end("the program is gone") from error

    def receive(self):
        """Receive one JSON value. Raises Ended."""
        size = struct.unpack("<I", self._exactly(4))[0]
        if size > MAX_MESSAGE:
            raise self.end("the program's answer is too large")
        try:
            return json.loads(self._exactly(size))
        except (ValueError, RecursionError) as error:
            raise self.end("the program's answer is malformed") from error

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            block = os.read(self.read, min(size - len(data), 1 << 20))
            if not block:
                raise self.end("the program ended before the tests did")
            data += block
        return bytes(data)

    def end(self, reason: str) -> Ended:
        """Record why the channel ended (the first reason is kept), and return the exception to raise."""
        self.ended = self.ended or reason
        return Ended(self.ended)


# Kinds that take one argument: how a value is written without asking it, and how it is read.
_ATOMS = {
    int: (lambda value: hex(int.__index__(value)), lambda text: int(text, 16)),
    complex: (complex.__repr__, complex),
    bytes: (lambda value: memoryview(value).hex(), bytes.fromhex),
    bytearray: (lambda value: memoryview(value).hex(), bytearray.fromhex),
}
_COLLECTIONS = (list, tuple, set, frozenset)
_TYPES = {kind.__name__: kind for kind in (*_ATOMS, *_COLLECTIONS, bool, float, str, dict)}
# Types that are rebuilt by calling them; their modules are imported on demand, since most programs need none.
_ARGUMENTS = {
    "decimal.Decimal": lambda value: [str(value)],
    "fractions.Fraction": lambda value: [str(value)],
    "builtins.range": lambda value: [value.start, value.stop, value.step],
}


def encode(value, handle: Callable[[object], list]):
    """Encode `value` as JSON: None, bool, str and float as they are, all else as a list that begins with its type name.

    handle(value) returns the list for a value that is not plain, or raises TypeError.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    for kind, (write, _) in _ATOMS.items():
        if isinstance(value, kind):
            return [kind.__name__, write(value)]
    for kind in _COLLECTIONS:
        if isinstance(value, kind):
            return [kind.__name__, *(encode(entry, handle) for entry in kind.__iter__(value))]
    if isinstance(value, dict):
        return ["dict", *([encode(key, handle), encode(entry, handle)] for key, entry in dict.items(value))]
    if isinstance(value, type) and value in _TYPES.values():
        return ["type", value.__name__]
    name = f"{type(value).__module__}.{type(value).__name__}"
    return [name, *_ARGUMENTS[name](value)] if name in _ARGUMENTS else handle(value)


def decode(value, handle: Callable[[list], object]):
    """Invert `encode`; handle(list) resolves a handle. Raises ValueError."""
    if not isinstance(value, list):
        return value
    name, *rest = value
    kind = _TYPES.get(name)
    if kind in _ATOMS:
        return _ATOMS[kind][1](rest[0])
    if kind in _COLLECTIONS:
        return kind(decode(entry, handle) for entry in rest)
    if kind is dict:
        return {decode(key, handle): decode(entry, handle) for key, entry in rest}
    if name in _ARGUMENTS:
        module, name = name.split(".")
        return getattr(importlib.import_module(module), name)(*rest)
    if name == "type" and rest[0] in _TYPES:
        return _TYPES[rest[0]]
    if name == "handle":
        return handle(rest)
    raise ValueError(f"unknown type {name!r}")


def update(target, changed) -> None:
    """Copy the contents of `changed` into the container `target`: a program may change its arguments in place."""
    if isinstance(target, list | bytearray):
        target[:] = changed
    elif isinstance(target, dict | set):
        target.clear()
        target.update(changed)
