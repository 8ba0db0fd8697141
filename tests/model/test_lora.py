"""LoRA pairs: exactly W + (lora_alpha / r) B A, gradients of the pairs alone, files that hold the pairs alone."""

import dataclasses
import math

import numpy as np
import pytest

from mindspore_impl import checkpoint, files
from mindspore_impl.errors import UserError
from mindspore_impl.model.options import LoraOptions
from tests.model.pangu_reference import forward_document
from tests.model.small_models import build, pack, run, small_options, weights_of

LORA = LoraOptions(r=3, lora_alpha=5.0, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"])
ALL = LoraOptions(2, 4.0, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
INPUTS = pack([[[5, 9, 2, 7, 7], [3, 1, 4]], [[8, 2, 6, 30, 12, 4, 1, 9, 20]]], 10)


def adapted(options, lora=LORA, seed=3, scatter=True):
    """(plain model, model with adapters on the same weights); `scatter`: B is drawn too, instead of zero."""
    from mindspore import Tensor

    from mindspore_impl.model.lora import with_adapters

    plain = build(options)
    model = with_adapters(options, lora, seed)
    base = weights_of(plain)
    draw = np.random.default_rng(seed)
    for parameter in model.get_parameters():
        if parameter.name in base:
            parameter.set_data(Tensor(base[parameter.name]))
        elif scatter:
            parameter.set_data(Tensor(0.3 * draw.standard_normal(parameter.shape).astype(np.float32)))
    model.set_train(False)
    return plain, model


def source_of(path, arrays, **more):
    """A file with `arrays`, opened."""
    from safetensors.numpy import save_file

    from mindspore_impl.model.weights import open_file

    save_file(arrays, path, **more)
    return open_file(path)


@pytest.fixture
def folder(tmp_path, ms_runtime):
    """A function that saves base and adapters as two stages would; -> their checkpoint folders, plain and adapted."""
    from mindspore_impl.model.adapter_file import Adapters, write_adapters

    def save(lora=LORA, options=None):
        plain, model = adapted(options or small_options(), lora)
        base = checkpoint.save(tmp_path / "base", 1, weights_of(plain), {}, {}, 1)
        adapters = Adapters(lora, base.weights_sha256)
        arrays = checkpoint.weights_of(model, trained=True)
        found = checkpoint.save(
            tmp_path / "pairs", 1, lambda path: write_adapters(path, arrays, adapters), {}, {}, 1
        )  # fmt: skip
        return plain, model, found

    save.base = lambda: checkpoint.open_weights(tmp_path / "base")
    return save


def test_names_shapes_and_what_is_trained(ms_runtime):
    from mindspore_impl.model.adapter_file import adapter_count, adapter_shapes
    from mindspore_impl.model.pangu import parameter_shapes

    options = small_options()
    _, model = adapted(options)
    expected = parameter_shapes(options)
    pairs = adapter_shapes(expected, LORA)
    shapes = {parameter.name: tuple(parameter.shape) for parameter in model.get_parameters()}
    assert shapes == {**expected, **pairs}
    assert {parameter.name for parameter in model.trainable_params()} == set(pairs)
    stem = "base_model.model.model.layers.1.mlp.down_proj.lora_"
    assert (pairs[stem + "A.weight"], pairs[stem + "B.weight"]) == ((3, 40), (24, 3))
    assert len(pairs) == 2 * 2 * 4
    assert adapter_count(options, LORA) == sum(math.prod(shape) for shape in pairs.values())
    assert not model.lm_head_weight.requires_grad


def test_new_pairs_are_zero_and_depend_on_the_seed_alone(ms_runtime):
    """B is zero, so that the product changes nothing."""
    model, again, other = (adapted(small_options(), seed=seed, scatter=False)[1] for seed in (3, 3, 4))
    ours, equal, unequal = (checkpoint.weights_of(cell, trained=True) for cell in (model, again, other))
    for name, value in ours.items():
        is_a, bound = ".lora_A." in name, 1 / math.sqrt(value.shape[1])
        np.testing.assert_array_equal(value, equal[name])
        assert np.array_equal(value, unequal[name]) == (not is_a)
        assert (0.5 * bound < np.abs(value).max() <= bound) if is_a else not value.any()


@pytest.mark.parametrize(
    ("shape", "lora"),
    [({"num_hidden_layers": 1}, ALL), ({"tie_word_embeddings": False, "num_hidden_layers": 1, "head_dim": 10}, LORA)],
    ids=["tied", "untied"],
)
def test_merged_weights_equal_the_definition_and_the_unmerged_model(folder, shape, lora):
    """The definition is written out in float64, and so is the model that has the merged weights."""
    options = small_options(**shape)
    plain, model, found = folder(lora, options)
    source, base = checkpoint.open_weights(found.path, base=folder.base), weights_of(plain)
    together = {name: source.read(name) for name in source.shapes}
    ids = np.arange(3, 12, dtype=np.int32)
    logits_LV = run(model, ids[None], ids[None] * 0 + np.arange(9, dtype=np.int32), ids[None] * 0 + 1)[0]
    for weights, close in ((together, True), (base, False)):
        expected = forward_document(weights, options, ids, np.arange(9))
        assert np.allclose(logits_LV, expected, rtol=2e-4, atol=2e-5) == close
    pairs = {parameter.name: parameter.asnumpy().astype(np.float64) for parameter in model.trainable_params()}
    for name, value in together.items():
        stem = "base_model.model." + name.removesuffix("weight") + "lora_"
        if stem + "A.weight" in pairs:
            change = lora.lora_alpha / lora.r * pairs[stem + "B.weight"] @ pairs[stem + "A.weight"]
            np.testing.assert_allclose(value, base[name] + change, rtol=1e-5, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(value, base[name], err_msg=name)


@pytest.mark.parametrize(("rank", "alpha"), [(1, 2.0), (4, 32.0)])
def test_alpha_over_rank_is_the_scale(rank, alpha, ms_runtime):
    from mindspore import Tensor

    from mindspore_impl.model.lora import LoraLinear
    from mindspore_impl.model.pangu import Linear

    linear = Linear(5, 7, True)
    linear.weight.name = "model.layers.0.self_attn.q_proj.weight"
    cell = LoraLinear(linear, LoraOptions(rank, alpha, ["q_proj"]), 0)
    draw = np.random.default_rng(0)
    values = {"w": (7, 5), "bias": (7,), "a": (rank, 5), "b": (7, rank), "x": (3, 5)}
    w, bias, a, b, x = (draw.standard_normal(shape).astype(np.float32) for shape in values.values())
    for parameter, value in ((linear.weight, w), (linear.bias, bias), (cell.lora_a, a), (cell.lora_b, b)):
        parameter.set_data(Tensor(value))
    np.testing.assert_allclose(run(cell, x), x @ w.T + bias + alpha / rank * (x @ a.T) @ b.T, rtol=1e-4, atol=1e-5)


def test_gradients_follow_from_those_of_the_merged_weights(ms_runtime):
    """dL/dA = s B^T G and dL/dB = s G A^T, with G = dL/dW of a plain model that has the merged weights."""
    import mindspore as ms
    from mindspore import Tensor

    from mindspore_impl.losses.objective import LossNetwork
    from mindspore_impl.losses.options import ObjectiveOptions

    plain, model = adapted(small_options(num_hidden_layers=1, recompute=True), ALL)
    pairs = {parameter.name: parameter.asnumpy() for parameter in model.trainable_params()}
    scale = ALL.lora_alpha / ALL.r
    for parameter in plain.get_parameters():
        stem = "base_model.model." + parameter.name.removesuffix("weight") + "lora_"
        if stem + "A.weight" in pairs:
            change = scale * pairs[stem + "B.weight"] @ pairs[stem + "A.weight"]
            parameter.set_data(Tensor(parameter.asnumpy() + change))
    ids, positions, segments = INPUTS
    weight_BL = np.where(segments > 0, 1 / np.count_nonzero(segments), 0).astype(np.float32)
    batch = [Tensor(array) for array in (ids, np.roll(ids, -1, 1), weight_BL, segments, positions)]

    def gradients(cell):
        network = LossNetwork(cell, ObjectiveOptions(), False)
        assert network.rows.head_gradient == (cell is plain)
        parameters = ms.ParameterTuple(cell.trainable_params())
        found = ms.value_and_grad(network, None, parameters, has_aux=True)(*batch)[1]
        return {p.name: g.asnumpy() for p, g in zip(parameters, found, strict=True)}

    dense, got = gradients(plain), gradients(model)
    assert set(got) == set(pairs)
    for name in (name for name in dense if name.endswith("_proj.weight")):
        stem = "base_model.model." + name.removesuffix("weight") + "lora_"
        a, b = pairs[stem + "A.weight"], pairs[stem + "B.weight"]
        for part, wanted in (("A", scale * b.T @ dense[name]), ("B", scale * dense[name] @ a.T)):
            error = np.abs(got[f"{stem}{part}.weight"] - wanted).max() / np.abs(wanted).max()
            assert error < 2e-4, (name, part, error)


def test_file_holds_the_adapters_alone_and_knows_its_base(folder):
    from mindspore_impl.model.adapter_file import read_adapters

    _, model, found = folder()
    arrays = checkpoint.read_arrays(found.weights_path)
    assert set(arrays) == {parameter.name for parameter in model.trainable_params()}
    adapters = read_adapters(found.weights_path)
    assert adapters.options == LORA and adapters.base_sha256 == files.sha256_file(folder.base().files[0])
    assert read_adapters(folder.base().files[0]) is None
    once = found.weights_path.read_bytes()
    assert folder()[2].weights_path.read_bytes() == once  # equal content, equal bytes, equal hash


def test_adapters_of_schema_1_are_read(folder, tmp_path):
    from mindspore_impl.model.adapter_file import read_adapters

    arrays = checkpoint.read_arrays(folder()[2].weights_path)
    old = '{"rank": 3, "alpha": 5.0, "targets": ["q_proj"], "base_sha256": "x"}'
    source_of(tmp_path / "old.safetensors", arrays, metadata={"lora": old})
    assert read_adapters(tmp_path / "old.safetensors").options == LoraOptions(3, 5.0, ["q_proj"])


def test_merged_weights_have_an_identity_of_their_own(folder):
    from mindspore_impl.model.weights import identity

    _, _, found = folder()
    digests = {identity(checkpoint.open_weights(found.path, base=folder.base)), identity(folder.base()),
               found.weights_sha256}  # fmt: skip
    assert len(digests) == 3


def test_adapters_of_other_weights_are_refused(folder, tmp_path):
    plain, _, found = folder()
    with pytest.raises(UserError, match="pairs/step_00000001"):
        checkpoint.open_weights(found.path)
    other = weights_of(plain)
    other["model.norm.weight"] = other["model.norm.weight"] + 1
    with pytest.raises(UserError, match="other.safetensors"):
        checkpoint.open_weights(found.path, base=lambda: source_of(tmp_path / "other.safetensors", other))


def test_missing_pairs_and_damaged_metadata_are_refused(folder, tmp_path):
    from mindspore_impl.model.adapter_file import merged, read_adapters

    _, _, found = folder()
    adapters, arrays = read_adapters(found.weights_path), checkpoint.read_arrays(found.weights_path)
    missing = sorted(arrays)[0]
    lacking = source_of(tmp_path / "lacking.safetensors", {k: v for k, v in arrays.items() if k != missing})
    with pytest.raises(UserError, match=f"{missing}.* is not in it; the adapters do not fit"):
        merged(lacking, adapters, folder.base())
    wider = dataclasses.replace(adapters, options=dataclasses.replace(LORA, r=4))
    whole = source_of(tmp_path / "whole.safetensors", arrays)
    with pytest.raises(UserError, match=r"\[3, 40\].*\[4, 40\]"):
        merged(whole, wider, folder.base())
    for text in ("{", "[]", '{"r": 0, "lora_alpha": 1, "target_modules": ["q_proj"], "base_sha256": "x"}', '{"r": 1}'):
        source_of(tmp_path / "bad.safetensors", arrays, metadata={"lora": text})
        with pytest.raises(UserError, match="bad.safetensors"):
            read_adapters(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LoraOptions(r=0), "lora.r: 0 "),
        (LoraOptions(lora_alpha=0.0), "lora.lora_alpha: 0"),
        (LoraOptions(lora_alpha=math.inf), "lora.lora_alpha: inf "),
        (LoraOptions(target_modules=[]), "lora.target_modules: .*q_proj, k_proj"),
        (LoraOptions(target_modules=["q_porj"]), "lora.target_modules: .*'q_porj'.*'q_proj'"),
        (LoraOptions(target_modules=["lm_head"]), "lora.target_modules: .*'lm_head'"),
        (LoraOptions(target_modules=["q_proj", "q_proj"]), "lora.target_modules: "),
    ],
)
def test_options_without_meaning_are_refused(options, message, ms_runtime):
    from mindspore_impl.model.lora import with_adapters

    with pytest.raises(UserError, match=message):
        with_adapters(small_options(), options, 0)
