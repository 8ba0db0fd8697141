"""Fixtures that tests of evaluation share."""

import contextlib
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from mindspore_impl.evaluation.sandbox import layers, syscalls
from mindspore_impl.evaluation.sandbox.run import isolation
from tests.evaluation.fake_backend import make_tokenizer
from tests.model.pangu_reference import forward_document
from tests.model.small_models import build, small_options, weights_of


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A small trained tokenizer with byte fallback."""
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def model(ms_runtime):
    """A model of two layers, 37 ids and 128 positions."""
    return build(small_options(max_position_embeddings=128))


def logits_of(model, ids) -> np.ndarray:
    """float64 logits_LV of one text, by the NumPy reference."""
    return forward_document(weights_of(model), model.options, np.asarray(ids), np.arange(len(ids)))


@contextlib.contextmanager
def damaged(parameter, place=slice(None)):
    """Set (part of) a parameter to NaN within the context."""
    from mindspore import Tensor

    before = parameter.asnumpy().copy()
    broken = before.copy()
    broken[place] = np.nan
    parameter.set_data(Tensor(broken))
    try:
        yield
    finally:
        parameter.set_data(Tensor(before))


@pytest.fixture
def isolated():
    """Skip where this machine cannot isolate programs."""
    if missing := isolation().missing:
        pytest.skip(f"this machine cannot promise {missing}: {isolation().reasons}")


@pytest.fixture
def nothing_left():
    """Fail when a test leaves a process or a folder of a program behind."""
    syscalls.adopt_orphans()  # a process that outlives its run becomes a child of this one
    before, folders = set(layers.children()), set(Path(tempfile.gettempdir()).glob("program_*"))
    yield
    left = set(layers.children()) - before
    for child in left:
        os.kill(child, 9)
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 0)
    mine = {f for f in set(Path(tempfile.gettempdir()).glob("program_*")) - folders if f.stat().st_uid == os.geteuid()}
    assert not left, "a process outlived its run"
    # Folders of concurrent runs disappear; one that stays is ours.
    deadline = time.monotonic() + 20
    while any(folder.exists() for folder in mine) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [folder for folder in mine if folder.exists()], "a folder outlived its run"
