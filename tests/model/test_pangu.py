"""The forward pass against plain float64 NumPy, and what must and must not change it."""

import dataclasses

import numpy as np
import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.model.options import ModelOptions
from tests.model.pangu_reference import forward_document
from tests.model.small_models import SHAPES, build, pack, run, shared, small_options, weights_of
from tests.ops.ascend_recorder import ascend  # noqa: F401

GENERATOR = np.random.default_rng(11)
DOCUMENTS = [
    [GENERATOR.integers(1, 37, size).tolist() for size in (5, 9)],
    [GENERATOR.integers(1, 37, size).tolist() for size in (7, 3, 6)],
]
LENGTH = 18  # the first row ends in four padding positions, the second in two


@pytest.fixture
def tied(ms_runtime):
    return shared("tied")


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_equals_float64_numpy(ms_runtime, shape):
    """At the first positions, and near the end of a long table of positions."""
    model = shared(shape)
    ids, positions, segments = pack(DOCUMENTS, LENGTH)
    for shift in (0, model.options.max_position_embeddings - LENGTH):
        logits_BLV = run(model, ids, positions + shift, segments)
        assert logits_BLV.dtype == np.float32 and logits_BLV.shape == (2, LENGTH, 37)
        for row, parts in enumerate(DOCUMENTS):
            start = 0
            for part in parts:
                places = shift + np.arange(len(part))
                expected = forward_document(weights_of(model), model.options, np.array(part), places)
                np.testing.assert_allclose(logits_BLV[row, start : start + len(part)], expected, rtol=2e-4, atol=2e-5)
                start += len(part)


def test_trap_12_packed_documents_equal_documents_alone(tied):
    packed_BLV = run(tied, *pack(DOCUMENTS, LENGTH))
    for row, parts in enumerate(DOCUMENTS):
        start = 0
        for part in parts:
            alone_LV = run(tied, *pack([[part], []], LENGTH))[0]
            np.testing.assert_allclose(packed_BLV[row, start : start + len(part)], alone_LV[: len(part)], atol=1e-5)
            start += len(part)


def test_no_leak_from_other_documents_or_the_future(tied):
    ids, positions, segments = pack(DOCUMENTS, LENGTH)
    before = run(tied, ids, positions, segments)
    for t in range(LENGTH):
        changed = ids.copy()
        changed[:, t] = (changed[:, t] + 7) % 37
        moved_BL = np.abs(run(tied, changed, positions, segments) - before).max(-1) > 0
        allowed_BL = (segments == segments[:, t : t + 1]) & (np.arange(LENGTH) >= t)
        assert not (moved_BL & ~allowed_BL).any()
        assert moved_BL[:, t].all()


def test_every_parameter_changes_the_output(tied):
    """A bias or a norm that is dropped silently is the known fault of ports of this model."""
    from mindspore import Tensor

    inputs = pack(DOCUMENTS, LENGTH)
    before = run(tied, *inputs)
    for parameter in tied.get_parameters():
        value = parameter.asnumpy().copy()
        neutral = np.ones_like(value) if parameter.name.endswith("norm.weight") else np.zeros_like(value)
        parameter.set_data(Tensor(neutral))
        difference = np.abs(run(tied, *inputs) - before).max()
        parameter.set_data(Tensor(value))
        # softmax cancels what a constant key bias adds, up to its rotation: small, but not nothing
        assert difference > (1e-4 if parameter.name.endswith("k_proj.bias") else 1e-3), parameter.name


def gradients(model, *inputs):
    """Of the sum of all logits, weighted by the last input."""
    import mindspore as ms
    from mindspore import Tensor, nn

    class Pulled(nn.Cell):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def construct(self, ids, positions, segments, pull):
            return (self.model(ids, positions, segments) * pull).sum()

    found = ms.grad(Pulled(model), None, model.trainable_params())(*map(Tensor, inputs))
    return [gradient.asnumpy() for gradient in found]


@pytest.fixture(scope="module")
def pulled(ms_runtime):
    """(options of a model of one layer, a batch that ends in padding and an empty row, its gradients)."""
    options = small_options(num_hidden_layers=1, vocab_size=11, hidden_size=8, intermediate_size=12)
    generator = np.random.default_rng(2)
    ids, positions, segments = pack(
        [[generator.integers(1, 11, 4).tolist(), generator.integers(1, 11, 3).tolist()], []], 9
    )
    pull_BLV = generator.standard_normal((2, 9, 11)).astype(np.float32) * (segments > 0)[..., None]
    batch = (ids, positions, segments, pull_BLV.astype(np.float32))
    return options, batch, gradients(build(options), *batch)


def test_trap_05_padding_is_finite_forward_and_backward(tied, pulled):
    assert np.isfinite(run(tied, *pack([[DOCUMENTS[0][0]], []], LENGTH))).all()
    assert all(np.isfinite(gradient).all() for gradient in pulled[2])


def test_gradients_equal_finite_differences(pulled):
    """The attention has its own backward pass: check it, and all else, against float64 NumPy differences."""
    options, (ids, _, segments, pull_BLV), found = pulled
    model, generator = build(options), np.random.default_rng(3)

    def value(weights):
        total = 0.0
        for number in (1, 2):
            inside = segments[0] == number
            logits = forward_document(weights, options, ids[0, inside], np.arange(inside.sum()))
            total += (logits * pull_BLV[0, inside]).sum()
        return total

    weights = {name: array.astype(np.float64) for name, array in weights_of(model).items()}
    for parameter, gradient in zip(model.trainable_params(), found, strict=True):
        for _ in range(3):
            where = tuple(generator.integers(0, size) for size in parameter.shape)
            kept, slope = weights[parameter.name][where], 0.0
            for sign in (1, -1):
                weights[parameter.name][where] = kept + sign * 1e-5
                slope += sign * value(weights) / 2e-5
            weights[parameter.name][where] = kept
            np.testing.assert_allclose(gradient[where], slope, rtol=2e-3, atol=2e-4, err_msg=parameter.name)


def test_recompute_changes_nothing(pulled):
    options, batch, found = pulled
    again = gradients(build(dataclasses.replace(options, recompute=True)), *batch)
    for plain, recomputed in zip(found, again, strict=True):
        np.testing.assert_allclose(plain, recomputed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_names_shapes_and_count_are_the_published_ones(ms_runtime, shape):
    from mindspore import nn

    from mindspore_impl.model.pangu import PanguForCausalLM, parameter_count, parameter_shapes

    class Wrapper(nn.Cell):
        def __init__(self, model):
            super().__init__()
            self.student = model

    options = small_options(**SHAPES[shape])
    model = PanguForCausalLM(options, seed=0)
    built = {parameter.name: tuple(parameter.shape) for parameter in model.get_parameters()}
    assert built == parameter_shapes(options)
    assert list(built) == [parameter.name for parameter in Wrapper(model).get_parameters()]  # also inside another Cell
    assert parameter_count(options) == sum(int(np.prod(size)) for size in built.values())
    assert "model.layers.0.self_attn.q_proj.weight" in built and "model.norm.weight" in built
    assert ("lm_head.weight" in built) == (not options.tie_word_embeddings)
    assert model.lm_head_weight.name == "model.embed_tokens.weight" or not options.tie_word_embeddings


def test_published_sizes():
    from mindspore_impl.model.pangu import check_options, parameter_count

    small = ModelOptions(vocab_size=153376, hidden_size=1536, intermediate_size=6144, num_hidden_layers=26,
        num_attention_heads=12, num_key_value_heads=6, head_dim=128, rope_theta=4e6,
        max_position_embeddings=32768)  # fmt: skip
    large = ModelOptions(vocab_size=153376, hidden_size=4096, intermediate_size=12800, num_hidden_layers=34,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, rope_theta=1.6e7,
        tie_word_embeddings=False)  # fmt: skip
    assert (parameter_count(small), parameter_count(large)) == (1_155_912_192, 8_030_887_936)
    check_options(small, "models.student"), check_options(large, "models.teacher")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "models.student.num_key_value_heads: 3 .* 4; nearest: 2"),
        ({"hidden_size": 26}, "models.student.hidden_size: 26 .* 4; nearest: 24 or 28"),
        ({"hidden_size": 12}, "models.student.head_dim: 3 is odd"),
        ({"head_dim": 7}, "models.student.head_dim: 7 is odd"),
        ({"head_dim": 0}, "models.student.head_dim: "),
        ({"vocab_size": 0}, "models.student.vocab_size: must be positive, found 0"),
        ({"num_hidden_layers": -1}, "models.student.num_hidden_layers: "),
        ({"rms_norm_eps": 0.0}, "models.student.rms_norm_eps: "),
        ({"rope_theta": float("nan")}, "models.student.rope_theta: "),
        ({"initializer_range": -1.0}, "models.student.initializer_range: "),
    ],
)
def test_check_options_names_the_key(changes, message):
    from mindspore_impl.model.pangu import check_options

    with pytest.raises(UserError, match=message):
        check_options(small_options(**changes), "models.student")


def test_initial_values_depend_on_seed_and_name_alone(ms_runtime):
    from mindspore_impl.model.pangu import PanguForCausalLM

    options = small_options()
    first, again, other = (weights_of(PanguForCausalLM(options, seed=seed)) for seed in (1, 1, 2))
    deeper = weights_of(PanguForCausalLM(small_options(num_hidden_layers=3), seed=1))
    name = "model.layers.0.mlp.gate_proj.weight"
    assert all((first[key] == again[key]).all() for key in first)
    assert (first[name] != other[name]).any() and (first[name] == deeper[name]).all()
    assert abs(first[name].std() - 0.02) < 0.002 and abs(first[name].mean()) < 0.003
    down = first["model.layers.0.mlp.down_proj.weight"]
    assert abs(down.std() - 0.02 / 2) < 0.001  # 2 layers: 1 / sqrt(4)
    assert not any(weights_of(PanguForCausalLM(options, initialise=False))[name].ravel())


def test_ascend_operators_in_place_give_the_same_model(tied, ascend):  # noqa: F811
    """Every fused call, with documented stand-ins, inside the whole network."""
    inputs = pack(DOCUMENTS, LENGTH)
    inside = inputs[2] > 0
    fused = build(small_options())
    np.testing.assert_allclose(run(fused, *inputs)[inside], run(tied, *inputs)[inside], rtol=1e-4, atol=1e-4)
    assert set(ascend) == {"rms_norm", "swiglu", "rotary", "flash"}


def test_half_precision_computes_with_float32_masters(ms_runtime, monkeypatch):
    """float16 stands in for Ascend's bfloat16, which has no CPU kernels."""
    import mindspore as ms

    expected = run(shared("untied_wide_head"), *pack(DOCUMENTS, LENGTH))
    monkeypatch.setattr(ms_runtime, "compute_dtype", lambda: ms.float16)
    model = build(small_options(**SHAPES["untied_wide_head"]))
    found = run(model, *pack(DOCUMENTS, LENGTH))
    assert found.dtype == np.float32 and all(parameter.dtype == ms.float32 for parameter in model.get_parameters())
    assert 1e-6 < np.abs(found - expected).max() < 0.05
