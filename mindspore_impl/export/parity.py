"""Compare a package with the training graph: logits, greedy text, time, size, memory.

The training graph reads the whole sequence again for each token, so it shares nothing with the package's cache. The
package is driven along the training graph's own greedy tokens, in a process that holds nothing else.
Legend: B = 1 sequence, L padded length, P prompts, S steps, V vocabulary.
"""

import ctypes
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindspore_impl import files, runtime
from mindspore_impl.distributed import processes
from mindspore_impl.errors import UserError

RELATIVE_LIMIT = 1e-4  # of an fp32 package's logits, against the largest logit: rounding stays a hundred times below


@dataclass
class Reference:
    """Results of the training graph: per prompt its ids, greedy tokens_S, and the logits_SV before each of them."""

    prompts: list[list[int]]
    tokens_PS: np.ndarray
    logits_PSV: np.ndarray
    seconds_per_token: float


def reference(model, prompts: list[list[int]], steps: int) -> Reference:
    """Decode `prompts` greedily with the training graph, one forward over the whole sequence for each token."""
    from mindspore import Tensor

    length = max(map(len, prompts)) + steps
    position_ids = Tensor(np.arange(length, dtype=np.int32)[None])
    tokens_PS = np.zeros((len(prompts), steps), np.int32)
    logits_PSV = np.zeros((len(prompts), steps, model.options.vocab_size), np.float32)
    seconds = []
    for index, prompt in enumerate(prompts):
        ids_BL = np.zeros((1, length), np.int32)
        ids_BL[0, : len(prompt)] = prompt
        for step in range(steps):
            place = len(prompt) + step
            segment_ids_BL = (np.arange(length) < place).astype(np.int32)[None]
            start = time.perf_counter()
            logits_BLV = model(Tensor(ids_BL), position_ids, Tensor(segment_ids_BL))
            logits_PSV[index, step] = logits_BLV[0, place - 1].asnumpy()
            seconds.append(time.perf_counter() - start)
            tokens_PS[index, step] = ids_BL[0, place] = logits_PSV[index, step].argmax()
    return Reference(prompts, tokens_PS, logits_PSV, statistics.median(seconds[1:] or seconds))


def measure(session, wanted: Reference) -> dict:
    """Drive `session` along the reference; -> differences, agreement and times."""
    found_PSV = np.zeros_like(wanted.logits_PSV)
    prefill_seconds, decode_seconds = [], []
    for index, prompt in enumerate(wanted.prompts):
        for step in range(wanted.tokens_PS.shape[1]):
            start = time.perf_counter()
            if step == 0:
                logits_BV = session.prefill(np.array([prompt], np.int32), np.array([len(prompt)]))
            else:
                logits_BV = session.decode(wanted.tokens_PS[index, step - 1 : step], np.array([len(prompt) + step - 1]))
            (decode_seconds if step else prefill_seconds).append(time.perf_counter() - start)
            found_PSV[index, step] = logits_BV[0]
    return compare(found_PSV, wanted) | {
        "seconds": {
            "prefill": statistics.median(prefill_seconds[1:] or prefill_seconds),
            "per_token": statistics.median(decode_seconds[1:] or decode_seconds or [0.0]),
        }
    }


def compare(found_PSV: np.ndarray, wanted: Reference) -> dict:
    """Differences and agreement between `found_PSV` and the reference.

    As every step was fed the reference's tokens, equal arg-maxima up to some step mean equal greedy text up to there.
    """
    from scipy.special import log_softmax

    difference_PS = np.abs(found_PSV - wanted.logits_PSV).max(axis=2)
    equal_PS = found_PSV.argmax(axis=2) == wanted.tokens_PS
    first_P = [int(row.argmin()) if not row.all() else len(row) for row in equal_PS]
    log_p, log_q = log_softmax(wanted.logits_PSV, axis=2), log_softmax(found_PSV, axis=2)
    return {
        "max_logits_difference": {
            "prefill": float(difference_PS[:, 0].max()),
            "decode": float(difference_PS[:, 1:].max(initial=0.0)),
        },
        "largest_logit": float(np.abs(wanted.logits_PSV).max()),
        "kl_nats": float(max(0.0, (np.exp(log_p) * (log_p - log_q)).sum(axis=2).mean())),
        "top1_agreement": float(equal_PS.mean()),
        "greedy_tokens_equal": first_P,  # a prompt each: how many tokens of text agree
        "greedy_equal_prompts": int(equal_PS.all(axis=1).sum()),
    }


def measure_alone(folder: Path, wanted: Reference) -> dict:
    """`measure` in a new process, with its memory. Raises UserError with the end of its stderr if it fails."""
    with tempfile.TemporaryDirectory() as scratch:
        given, result = Path(scratch) / "reference.npz", Path(scratch) / "result.json"
        prompts = {f"prompt_{index:04d}": np.array(ids, np.int32) for index, ids in enumerate(wanted.prompts)}
        np.savez(given, tokens=wanted.tokens_PS, logits=wanted.logits_PSV, **prompts)
        command = [sys.executable, "-m", "mindspore_impl.export.parity", str(folder), str(given), str(result)]
        done = subprocess.run(command, env=processes.environment(), capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{folder}: the exported graphs do not run: {done.stderr.strip()[-2000:]}")
        return files.read_json(result)


def check(precision: str, row: dict) -> None:
    """Raise UserError for logits that are not finite, and for an fp32 package that differs from the training graph."""
    worst = max(row["max_logits_difference"].values())
    limit = RELATIVE_LIMIT * max(1.0, row["largest_logit"])
    if not np.isfinite(worst) or (precision == "fp32" and worst > limit):
        fault = f"differ from the training graph by {worst:.3g} in the logits (allowed: {limit:.3g})"
        raise UserError(f"the exported {precision} graphs {fault}; nothing was published")


def _memory(key: str) -> int | None:
    """`runtime.process_bytes`, after the C library has returned freed memory to the system."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return runtime.process_bytes(key)


def _main(folder: str, given: str, result: str) -> None:
    from mindspore_impl.export.package import DECODE, open_package
    from mindspore_impl.export.session import MindSporeGraphs, Session

    runtime.setup(runtime.RuntimeOptions(device="CPU"))
    with np.load(given) as content:
        tokens, logits, *prompts = (content[name] for name in content.files)
    prompts = [ids.tolist() for ids in prompts]
    memory, start = {"start": _memory("VmRSS")}, time.perf_counter()
    package = open_package(folder)
    graphs = MindSporeGraphs(package)
    loaded = time.perf_counter() - start
    graphs.run(DECODE, [np.zeros(1, np.int32), np.zeros(1, np.int32)], graphs.empty_caches())
    memory["one_graph"] = _memory("VmRSS")
    session = Session(package, graphs)
    session.prefill(np.array(prompts[:1], np.int32), np.array([len(prompts[0])]))
    memory["both_graphs"] = _memory("VmRSS")
    row = measure(session, Reference(prompts, tokens, logits, 0.0))
    memory["peak"] = _memory("VmHWM")
    row["seconds"]["load"] = loaded
    files.write_json(result, row | {"process_memory_bytes": memory})


if __name__ == "__main__":
    _main(*sys.argv[1:])
