"""Fixtures that several rooms share."""

import pytest


@pytest.fixture(scope="session")
def ms_runtime():
    """MindSpore in graph mode on the CPU, seeded, with two threads."""
    from mindspore_impl import runtime

    runtime.setup(runtime.RuntimeOptions(device="CPU", threads=2), seed=0)
    return runtime
