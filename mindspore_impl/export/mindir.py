"""MindIR files: trace graphs without their weights, load them with shared weights, or write them with weights inside.

A graph is traced with Parameters of zeros, which are then taken out of the protobuf (`ms.export` hands it over as
`custom_func`); names, shapes and dtypes stay. `load_graph` fills them with tensors that several graphs share in memory;
`materialise` writes a file that needs no other, in the two layouts that `ms.export` has.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.export.stored import Stored

# Everything that a graph may consist of: operators that any MindIR backend has. "Custom" is not among them.
PLAIN_OPERATORS = frozenset(
    "Add BatchMatMul BiasAdd Cast Concat Constant Depend Gather GreaterEqual LessEqual Load MakeTuple MatMul Mul "
    "ReduceMean Reshape Rsqrt Sigmoid Softmax Split StridedSlice Sub TensorScatterUpdate Tile Transpose TupleGetItem "
    "UpdateState".split()
)
_NUMPY = {1: "float32", 10: "float16", 3: "int8", 6: "int32", 7: "int64"}  # the protobuf's number of a dtype
ALIGNMENT = 64  # bytes; of values in a side file, and the length of its head
TOGETHER = 1 << 30  # bytes of weights up to which a materialised graph is one file, as in ms.export


def trace(cell, *inputs) -> bytes:
    """The MindIR protobuf of `cell` for inputs of these shapes, without the values of its Parameters."""
    import mindspore as ms

    found = {}

    def take(model) -> None:
        found["graph"] = model.SerializeToString()
        del model.graph.parameter[:]  # so that no weight is written by ms.export itself

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "graph.mindir")
        ms.export(cell, *inputs, file_name=path, file_format="MINDIR", custom_func=take)
    return found["graph"]


def read_graph(path: Path):
    """The parsed protobuf of a MindIR file. Raises UserError that names it."""
    from google.protobuf.message import DecodeError
    from mindspore.train.mind_ir_pb2 import ModelProto

    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise UserError(f"{path}: cannot be read as MindIR ({error}); export again") from error
    return model


def operators(model) -> set[str]:
    """The names of all operators in a MindIR protobuf, those of its functions included."""
    kinds = {primitive.name: primitive.op_type for primitive in model.primitives}
    nodes = [node for graph in (model.graph, *model.functions) for node in graph.node]
    return {kinds.get(node.op_type.removeprefix("REF::"), node.op_type) for node in nodes}


def check_plain(model, path: Path) -> None:
    """Refuse a graph with an operator that is not plain. Raises UserError naming file and operator."""
    if foreign := sorted(operators(model) - PLAIN_OPERATORS):
        raise UserError(f"{path}: holds the operator {foreign[0]}, which a board may lack; export with this version")


def parameters(model) -> dict[str, Stored]:
    """Shape and dtype of the weights that a graph reads."""
    return {p.ref_key: _stored(p) for p in model.graph.parameter}


def inputs(model) -> list[Stored]:
    """Shapes and dtypes of a graph's inputs, in order."""
    return [_stored(value.tensor[0]) for value in model.graph.input]


def outputs(model) -> list[Stored]:
    """Shapes and dtypes of a graph's outputs, nested tuples flattened, in order."""

    def leaves(attribute):
        for tensor in attribute.tensors:
            yield _stored(tensor)
        for value in attribute.values:
            yield from leaves(value)

    return [stored for value in model.graph.output for stored in leaves(value.attr_info)]


def _stored(tensor) -> Stored:
    return Stored(tuple(tensor.dims), _NUMPY.get(tensor.data_type, f"dtype {tensor.data_type}"))


def load_graph(path: Path, weights: dict):
    """A callable Cell of the graph in `path` whose weights are the Parameters `weights`, shared and not copied."""
    import mindspore as ms
    from mindspore import Tensor, nn

    graph = ms.load(str(path))
    cell = nn.GraphCell(graph)
    for name in parameters(read_graph(path)):
        # GraphCell copies what it is given, so it gets a stand-in for a moment; set_data then shares the tensor.
        value = weights[name]
        cell = nn.GraphCell(graph, params_init={name: Tensor(np.zeros(value.shape, value.asnumpy().dtype))})
        next(p for p in cell.get_parameters() if p.name == name).set_data(value)
    return cell


def materialise(
    source: Path, target: Path, value_of: Callable[[str], np.ndarray], together: int = TOGETHER
) -> list[Path]:
    """Write the graph of `source` with its weights, for tools that want a full MindIR; return the files.

    Up to `together` bytes of weights `target`.mindir holds everything; above, `target`_graph.mindir names places in
    `target`_variables/data_0, which must stay beside it. Values are read one at a time.
    """
    model = read_graph(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    if sum(stored.size for stored in parameters(model).values()) <= together:
        for tensor in model.graph.parameter:
            tensor.raw_data = value_of(tensor.ref_key).tobytes()
        written = [target.with_name(target.name + ".mindir")]
    else:
        data = target.with_name(target.name + "_variables") / "data_0"
        written = [target.with_name(target.name + "_graph.mindir"), data]
        values = _values(model, f"{data.parent.name}/{data.name}", value_of)
        files.atomic_write(data, lambda temporary: files.write_blocks(temporary, values) and None)
    files.atomic_write(written[0], lambda temporary: temporary.write_bytes(model.SerializeToString()) and None)
    return written


def _values(model, location: str, value_of: Callable[[str], np.ndarray]) -> Iterator[bytes]:
    """The side file: a head whose first byte says little-endian, then the values, aligned. Places go to `model`."""
    yield bytes([sys.byteorder == "little"]) + bytes(ALIGNMENT - 1)
    offset = ALIGNMENT
    for tensor in model.graph.parameter:
        value = value_of(tensor.ref_key).tobytes()
        place = tensor.external_data
        place.location, place.offset, place.length = location, offset, len(value)
        padding = bytes(-len(value) % ALIGNMENT)
        yield value + padding
        offset += len(value) + len(padding)
