"""Where memory runs out: one message that says what to lower; other faults pass."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindspore_impl.errors import UserError, enough_memory

GRAPH = """
----------------------------------------------------
- Memory not enough:
----------------------------------------------------
Memory isn't enough and alloc failed, kernel name: MatMul-op1, alloc size: 1600000000B.

----------------------------------------------------
- C++ Call Stack: (For framework developers)
----------------------------------------------------
mindspore/ccsrc/backend/ms_backend/runtime/graph_scheduler/base/graph_scheduler.cc:1168 Run
"""  # as MindSpore 2.9.0 raises it on the CPU


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError(GRAPH),
            "Memory isn't enough and alloc failed, kernel name: MatMul-op1, alloc size: 1600000000B.",
        ),
        (RuntimeError("Allocate memory failed\n\n- C++ Call Stack:\nx.cc:1"), "Allocate memory failed"),
        (RuntimeError("Malloc device memory failed, free memory size is less"), "Malloc device memory failed"),
        (RuntimeError("std::bad_alloc"), "std::bad_alloc"),
        (RuntimeError("NPU out of memory. Tried"), "NPU out of memory. Tried"),
        (MemoryError(), "MemoryError"),
        (MemoryError("Unable to allocate 1.49 GiB for an array"), "Unable to allocate 1.49 GiB for an array"),
    ],
)
def test_an_allocation_that_fails_is_told_in_one_line(error, said):
    with pytest.raises(UserError) as found, enough_memory("stage 3", "lower a.b"):
        raise error
    text = str(found.value)
    assert text.startswith("stage 3: out of memory (") and said in text and text.endswith("; lower a.b")
    assert "\n" not in text and found.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("The memory of the graph is fine"), ValueError("out of memory")])
def test_other_faults_pass(error):
    with pytest.raises(type(error)) as found, enough_memory("stage 3", "lower a.b"):
        raise error
    assert found.value is error


def test_a_stage_says_which_of_its_options_to_lower():
    from mindspore_impl.curriculum.stages import KINDS

    for kind in KINDS.values():
        assert "{" not in kind.less_memory.format("stages.mine")
    assert "stages.mine.data.gradient_accumulation_steps" in KINDS["distill"].less_memory.format("stages.mine")


@pytest.mark.slow
def test_what_mindspore_raises_is_known(tmp_path):
    """A graph that needs more than the process may have, for real."""
    script = """
import resource
import numpy as np
import mindspore as ms
from mindspore import ops
from mindspore_impl.errors import UserError, enough_memory
ms.set_context(mode=ms.GRAPH_MODE)
ms.set_device("CPU")

@ms.jit
def network(x):
    return ops.exp(ops.matmul(x, x.T)).sum()

network(ms.Tensor(np.ones((8, 8), np.float32)))
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
try:
    with enough_memory("here", "lower it"):
        network(ms.Tensor(np.ones((20000, 8), np.float32))).asnumpy()
except UserError as error:
    print(error)
"""
    file = tmp_path / "network.py"  # MindSpore compiles from source files alone
    file.write_text(script)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), "GLOG_v": "3"}
    done = subprocess.run([sys.executable, str(file)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("here: out of memory (") and done.stdout.endswith("; lower it\n"), done.stderr[-2000:]
