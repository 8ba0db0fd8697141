"""Fixtures that tests of evaluation share."""

import os
import tempfile
import time
from pathlib import Path

import pytest

from mindspore_impl.evaluation.sandbox import isolation, layers, syscalls
from tests.evaluation.fake_backend import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A small trained tokenizer with byte fallback."""
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def isolated():
    """Skip where this machine cannot isolate programs."""
    if missing := isolation().missing:
        pytest.skip(f"this machine cannot promise {missing}: {isolation().reasons}")


@pytest.fixture
def nothing_left():
    """Fail when a test leaves a process or a folder of a program behind."""
    syscalls.adopt_orphans()  # a process that outlives its run becomes a child of this one
    before, folders = set(layers._children()), set(Path(tempfile.gettempdir()).glob("program_*"))
    yield
    left = set(layers._children()) - before
    for child in left:
        os.kill(child, 9)
    syscalls._prctl(syscalls._PR_SET_CHILD_SUBREAPER, 0)
    mine = {f for f in set(Path(tempfile.gettempdir()).glob("program_*")) - folders if f.stat().st_uid == os.geteuid()}
    assert not left, "a process outlived its run"
    # Folders of concurrent runs disappear; one that stays is ours.
    deadline = time.monotonic() + 20
    while any(folder.exists() for folder in mine) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [folder for folder in mine if folder.exists()], "a folder outlived its run"
