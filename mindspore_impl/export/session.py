"""Run a package: prefill a prompt, then decode one token at a time, with the cache kept inside.

With MindSpore the graphs run on the CPU (or whatever device `runtime.setup` chose) and share one copy of the weights.
Where `mindspore_lite` can be imported and the package has a folder lite/ with converted graphs, those run instead: that
path is written against the documented API (Context, Model.build_from_file, get_inputs, predict) and has not run on a
board. Legend: B = 1 sequence, L padded prompt length, T cache slots, V vocabulary.
"""

import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.export.package import DECODE, LITE, WEIGHTS, Package, graph_ports, open_package, prefill_name
from mindspore_impl.export.stored import read_weights
from mindspore_impl.generation.decoder import right_padded


class MindSporeGraphs:
    """The graphs as `nn.GraphCell`s, loaded when they are first needed, on one copy of the weights."""

    def __init__(self, package: Package):
        from mindspore import Parameter, Tensor

        self.package = package
        self.weights = {
            name: Parameter(Tensor.from_numpy(array), name=name, requires_grad=False)
            for name, array in read_weights(package.folder / WEIGHTS)
        }
        self._cells: dict = {}

    def run(self, name: str, numbers: list[np.ndarray], caches: list) -> tuple[np.ndarray, list]:
        """-> logits_BV float32 and the new caches of graph `name`; caches are the engine's own tensors."""
        from mindspore import Tensor

        from mindspore_impl.export.mindir import load_graph

        if name not in self._cells:
            self._cells[name] = load_graph(self.package.graph(name), self.weights)
        logits_BV, *kept = _flat(self._cells[name](*map(Tensor, numbers), *caches))
        return logits_BV.asnumpy(), kept

    def empty_caches(self) -> list:
        """Caches of zeros, to decode without a prompt."""
        from mindspore import Tensor

        package = self.package
        ports = graph_ports(package.model, package.precision, package.cache_length, DECODE)[0]
        return [Tensor(np.zeros(port.shape, port.dtype)) for port in ports[2:]]


def _flat(value):
    if isinstance(value, tuple | list):
        for item in value:
            yield from _flat(item)
    else:
        yield value


class LiteGraphs:
    """The graphs converted by converter_lite, run by MindSpore Lite on an Ascend board. Not yet run on hardware."""

    def __init__(self, package: Package, device_id: int = 0):
        import mindspore_lite as lite

        context = lite.Context()
        context.target = ["ascend"]
        context.ascend.device_id = device_id
        self._models = {}
        for name in package.graphs:
            model = lite.Model()
            path = files.inside(package.folder, f"{LITE}/{name}.mindir")
            model.build_from_file(str(path), lite.ModelType.MINDIR, context)
            found = [tuple(tensor.shape) for tensor in model.get_inputs()]
            ports = graph_ports(package.model, package.precision, package.cache_length, name)[0]
            if found != [port.shape for port in ports]:
                raise UserError(f"{path}: its inputs are {found[:3]}..., not those of the package; convert it again")
            self._models[name] = model

    def run(self, name: str, numbers: list[np.ndarray], caches: list) -> tuple[np.ndarray, list]:
        """As MindSporeGraphs.run."""
        inputs = self._models[name].get_inputs()
        for tensor, array in zip(inputs, [*numbers, *caches], strict=True):
            tensor.set_data_from_numpy(array)
        logits_BV, *kept = [tensor.get_data_to_numpy() for tensor in self._models[name].predict(inputs)]
        return logits_BV.astype(np.float32, copy=False), kept


class Session:
    """One conversation with a package, as a `generation.decoder.Decoder` of one sequence (B = 1).

    `prefill` starts it and `decode` goes on; `slots` is the length T of the cache.
    """

    def __init__(self, package: Package, graphs: MindSporeGraphs | LiteGraphs):
        self.package, self.graphs = package, graphs
        self.vocab_size, self.slots = package.model.vocab_size, package.cache_length
        self._caches: list = []

    def padded(self, length: int) -> int:
        """The bucket of a prompt of this length. Raises UserError when it fits no bucket, or not the cache."""
        return self.package.bucket(length)

    def prefill(self, ids_BL: np.ndarray, length_B: np.ndarray) -> np.ndarray:
        """Logits_BV float32 after the right-padded prompt; an earlier conversation is forgotten.

        Raises UserError when the prompt is empty, holds a foreign id, or does not fit the cache or the largest bucket.
        """
        ids_BL = _one_row(ids_BL)
        ids = ids_BL[0, : int(length_B[0])]
        if not ids.size or ids.min() < 0 or ids.max() >= self.vocab_size:
            raise UserError(f"the prompt must hold ids from 0 to {self.vocab_size - 1}, at least one; found {ids[:8]}")
        bucket = self.package.bucket(ids.size)
        numbers = [right_padded([ids], bucket, 1, 0), np.array([ids.size - 1], np.int32)]
        logits_BV, self._caches = self.graphs.run(prefill_name(bucket), numbers, [])
        return logits_BV

    def decode(self, token_B: np.ndarray, position_B: np.ndarray) -> np.ndarray:
        """Logits_BV float32 after one more token, at `position_B` (the number of tokens before it).

        Raises UserError when the cache is full, ValueError before any `prefill`.
        """
        if not self._caches:
            raise ValueError("decode needs a prefill before it")
        if int(position_B[0]) >= self.slots:
            advice = "export with a larger --cache-length, or shorten the conversation"
            raise UserError(f"{self.package.folder}: the cache of {self.slots} tokens is full; {advice}")
        numbers = [_one_row(token_B).astype(np.int32), np.asarray(position_B, np.int32)]
        logits_BV, self._caches = self.graphs.run(DECODE, numbers, self._caches)
        return logits_BV


def _one_row(array_B: np.ndarray) -> np.ndarray:
    if len(array_B) != 1:
        fault = f"a package decodes one sequence at a time, found {len(array_B)}"
        raise UserError(f"{fault}; use the checkpoint for batches")
    return array_B


def open_session(folder: str | Path, engine: Literal["auto", "mindspore", "lite"] = "auto") -> Session:
    """Verify a package and make it ready to run. `runtime.setup` comes first when MindSpore is to run it.

    "auto" takes MindSpore Lite when it is installed and lite/ holds all converted graphs. Raises UserError when the
    package is damaged, or MindSpore Lite is asked for and cannot run it.
    """
    package = open_package(folder)
    missing = [n for n in package.graphs if not files.inside(package.folder, f"{LITE}/{n}.mindir").is_file()]
    installed = importlib.util.find_spec("mindspore_lite") is not None
    if engine == "lite" and (missing or not installed):
        lacking = f"no {LITE}/{missing[0]}.mindir (converter_lite makes it)" if missing else "no mindspore_lite here"
        raise UserError(f"{package.folder}: MindSpore Lite cannot run it: {lacking}")
    lite = engine == "lite" or (engine == "auto" and installed and not missing)
    return Session(package, LiteGraphs(package) if lite else MindSporeGraphs(package))
