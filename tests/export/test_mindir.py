"""Graphs without weights: what they consist of, and that weights come back as they were."""

import numpy as np
import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.export import mindir
from mindspore_impl.export.package import materialise, open_package
from mindspore_impl.export.session import MindSporeGraphs, open_session
from mindspore_impl.export.stored import read_weights, stored_tensors
from tests.export.conftest import CACHE, PROMPTS


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_graphs_hold_plain_operators_and_no_weights(packages, options, precision):
    wanted = stored_tensors(options, precision, CACHE)
    for path in sorted(packages[precision][0].glob("*.mindir")):
        model = mindir.read_graph(path)
        assert mindir.operators(model) <= mindir.PLAIN_OPERATORS
        assert "MatMul" in mindir.operators(model) and "Custom" not in mindir.PLAIN_OPERATORS
        assert mindir.parameters(model) == wanted
        assert not any(tensor.raw_data for tensor in model.graph.parameter)


def test_a_custom_operator_is_refused(ms_runtime, tmp_path):
    from mindspore.train.mind_ir_pb2 import ModelProto

    model = ModelProto()
    model.primitives.add(name="Custom:1", op_type="Custom")
    model.functions.add().node.add(op_type="REF::Custom:1")
    with pytest.raises(UserError, match=r"g\.mindir: holds the operator Custom"):
        mindir.check_plain(model, tmp_path / "g.mindir")


def _prefill(package):
    numbers = [np.zeros((1, 12), np.int32), np.array([len(PROMPTS[0]) - 1], np.int32)]
    numbers[0][0, : len(PROMPTS[0])] = PROMPTS[0]
    return package / "prefill_12.mindir", numbers


def _run(cell, numbers):
    from mindspore import Tensor

    return cell(*map(Tensor, numbers))[0].asnumpy()


def test_reload_equals_the_cell_that_was_exported(ms_runtime, packages, options):
    from mindspore import Parameter, Tensor

    from mindspore_impl.export.portable import PortablePrefill

    folder = packages["fp32"][0]
    path, numbers = _prefill(folder)
    arrays = dict(read_weights(folder / "weights.safetensors"))
    cell = PortablePrefill(options, "fp32", CACHE)
    for parameter in cell.get_parameters():
        parameter.set_data(Tensor(arrays[parameter.name]))
    loaded = mindir.load_graph(path, {name: Parameter(Tensor(array), name=name) for name, array in arrays.items()})
    assert np.abs(_run(loaded, numbers) - _run(cell, numbers)).max() <= 1e-5


def test_graphs_share_their_weights_in_memory(ms_runtime, packages):
    from mindspore import Tensor

    graphs = MindSporeGraphs(open_package(packages["fp32"][0]))
    one = np.array([3], np.int32)
    prompt = [np.full((1, 12), 3, np.int32), np.array([0], np.int32)]

    def both():
        return (graphs.run("prefill_12", prompt, [])[0], graphs.run("decode", [one, one * 0], graphs.empty_caches())[0])

    before = both()
    norm = graphs.weights["model.norm.weight"]
    norm.asnumpy()[:] *= 2  # in place: what is shared changes for both
    after = both()
    norm.set_data(Tensor(norm.asnumpy()))
    for old, new in zip(before, after, strict=True):
        np.testing.assert_allclose(new, 2 * old, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("together", [mindir.TOGETHER, 1000], ids=["one file", "side file"])
def test_materialised_graphs_need_nothing_else(ms_runtime, packages, tmp_path, together):
    import mindspore as ms

    folder = packages["fp32"][0]
    paths = materialise(folder, tmp_path / "full", together)
    assert len(paths) == 3 and all(path.name.endswith(".mindir") for path in paths)
    (path,) = [path for path in paths if path.name.startswith("prefill_12")]
    assert path.name == ("prefill_12.mindir" if together == mindir.TOGETHER else "prefill_12_graph.mindir")
    found = _run(ms.nn.GraphCell(ms.load(str(path))), _prefill(folder)[1])
    wanted = open_session(folder).prefill(np.array([PROMPTS[0]], np.int32), np.array([len(PROMPTS[0])]))
    np.testing.assert_array_equal(found, wanted)


def test_materialise_refuses_a_folder_in_use(ms_runtime, package, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not an empty folder"):
        materialise(package, tmp_path / "out")
