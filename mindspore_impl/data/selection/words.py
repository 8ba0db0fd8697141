"""Words and their hashes, without case and punctuation, for duplicates and decontamination."""

import hashlib
import json
import os
import re
from functools import lru_cache
from tempfile import TemporaryFile

import numpy as np

CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+")
# The lower-case letter or digit of each byte of ASCII text, else a space: four times as fast as _WORD.
_ASCII = bytes(ord(chr(byte).lower()) if byte < 128 and chr(byte).isalnum() else 32 for byte in range(256))
_FACTOR = 0x9E3779B97F4A7C15  # odd, so invertible modulo 2^64


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits; every CJK character is a word of its own."""
    if text.isascii():
        return text.encode().translate(_ASCII).decode().split()
    return _WORD.findall(text.lower())


@lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    return hash64(word)


def hash64(text: str) -> int:
    """64-bit hash, equal on every machine and in every run (Python's own is not)."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def word_hashes(text: str) -> np.ndarray:
    """uint64 hash of each word, in order."""
    found = words(text)
    return np.fromiter(map(_word_hash, found), np.uint64, len(found))


def ngram_hashes(hashes: np.ndarray, size: int) -> np.ndarray:
    """uint64 hash of every n-gram of `size` words, in order; none where the text is shorter.

    A polynomial in an odd factor modulo 2^64: prefix sums and the factor's inverse give all n-grams at once.
    """
    count = len(hashes) - size + 1
    if count < 1:
        return np.empty(0, np.uint64)
    powers, inverses = _powers(1 << len(hashes).bit_length())
    sums = np.zeros(len(hashes) + 1, np.uint64)
    np.cumsum(hashes * powers[: len(hashes)], out=sums[1:])
    return (sums[size:] - sums[:count]) * inverses[:count]


@lru_cache(maxsize=32)
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the factor and of its inverse, modulo 2^64."""
    factors = np.full((2, count), 1, np.uint64)
    factors[:, 1:] = np.array([[_FACTOR], [pow(_FACTOR, -1, 1 << 64)]], np.uint64)
    powers, inverses = np.multiply.accumulate(factors, axis=1)
    return powers, inverses


class IdBook:
    """Ids in a temporary file, so that a record costs 8 bytes of memory."""

    def __init__(self, folder):
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115

    def add(self, identity: str) -> int:
        """Store an id; returns its position for `find`."""
        position = self._file.tell()
        self._file.write(json.dumps(identity).encode() + b"\n")
        return position

    def find(self, position: int) -> str:
        """The id stored at `position`."""
        self._file.seek(position)
        identity = json.loads(self._file.readline())
        self._file.seek(0, os.SEEK_END)
        return identity
