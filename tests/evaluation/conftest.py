"""Fixtures that tests of evaluation share."""

import os
import tempfile
import time
from pathlib import Path

import pytest

from mindspore_impl.evaluation.enclosed import kernel, layers
from tests.evaluation.fake_backend import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A small trained tokenizer with byte fallback."""
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def nothing_left():
    """Each test ends without a process or a folder of the program's."""
    kernel.adopt_orphans()  # what outlives a run becomes a child of this process
    before, folders = set(layers._children()), set(Path(tempfile.gettempdir()).glob("program_*"))
    yield
    left = set(layers._children()) - before
    for child in left:
        os.kill(child, 9)
    kernel._prctl(kernel._PR_SET_CHILD_SUBREAPER, 0)
    mine = {f for f in set(Path(tempfile.gettempdir()).glob("program_*")) - folders if f.stat().st_uid == os.geteuid()}
    assert not left, "a process outlived its run"
    # Other runs on this machine come and go: a folder that stays is one of ours.
    deadline = time.monotonic() + 20
    while any(folder.exists() for folder in mine) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [folder for folder in mine if folder.exists()], "a folder outlived its run"
