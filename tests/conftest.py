"""Fixtures that several rooms share."""

import pytest


@pytest.fixture(scope="session")
def native_operators():
    """For tests of the native CPU operators: skips where there is no C++ compiler, fails where the build does."""
    from mindspore_impl.ops import native

    if native.builder().compiler() is None:
        pytest.skip("no C++ compiler")
    assert native.library() is not None


@pytest.fixture(scope="session")
def ms_runtime():
    """MindSpore in graph mode on the CPU, seeded, with two threads."""
    from mindspore_impl import runtime

    runtime.setup(runtime.RuntimeOptions(device="CPU", threads=2), seed=0)
    return runtime
