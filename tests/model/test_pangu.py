"""The forward pass against plain float64 NumPy, and what must and must not change it."""

import numpy as np
import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.model.options import ModelOptions
from tests.model.pangu_reference import forward_document
from tests.model.small_models import SHAPES, build, pack, run, small_options, weights_of
from tests.ops.ascend_recorder import ascend  # noqa: F401

GENERATOR = np.random.default_rng(11)
DOCUMENTS = [
    [GENERATOR.integers(1, 37, size).tolist() for size in (5, 9)],
    [GENERATOR.integers(1, 37, size).tolist() for size in (7, 3, 6)],
]
LENGTH = 18  # the first row ends in four padding positions, the second in two


@pytest.fixture(scope="module")
def tied(ms_runtime):
    return build(small_options())


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_equals_float64_numpy(ms_runtime, shape):
    model = build(small_options(**SHAPES[shape]))
    logits_BLV = run(model, *pack(DOCUMENTS, LENGTH))
    assert logits_BLV.dtype == np.float32 and logits_BLV.shape == (2, LENGTH, 37)
    for row, parts in enumerate(DOCUMENTS):
        start = 0
        for part in parts:
            expected = forward_document(weights_of(model), model.options, np.array(part), np.arange(len(part)))
            np.testing.assert_allclose(logits_BLV[row, start : start + len(part)], expected, rtol=2e-4, atol=2e-5)
            start += len(part)


@pytest.mark.parametrize("theta", [4e6, 1.6e7])
def test_positions_near_the_end_stay_accurate(ms_runtime, theta):
    model = build(small_options(rope_theta=theta, max_position_embeddings=32768))
    ids, positions = np.arange(1, 13)[None].astype(np.int32), np.array([[0, 1, 2, 32756, 32757, 32758, 32759, 32764,
        32765, 32766, 32767, 32767]], np.int32)  # fmt: skip
    logits_LV = run(model, ids, positions, np.ones_like(ids))[0]
    expected = forward_document(weights_of(model), model.options, ids[0], positions[0])
    np.testing.assert_allclose(logits_LV, expected, rtol=2e-4, atol=2e-5)


def test_trap_12_packed_documents_equal_documents_alone(tied):
    packed_BLV = run(tied, *pack(DOCUMENTS, LENGTH))
    for row, parts in enumerate(DOCUMENTS):
        start = 0
        for part in parts:
            alone_LV = run(tied, *pack([[part]], LENGTH))[0]
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


def test_trap_05_padding_is_finite_forward_and_backward(tied):
    import mindspore as ms
    from mindspore import Tensor, nn

    class Total(nn.Cell):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def construct(self, ids, positions, segments):
            return self.model(ids, positions, segments).sum()

    ids, positions, segments = pack([[DOCUMENTS[0][0]], []], LENGTH)
    assert np.isfinite(run(tied, ids, positions, segments)).all()
    gradients = ms.grad(Total(tied), None, tied.trainable_params())(*map(Tensor, (ids, positions, segments)))
    assert all(np.isfinite(gradient.asnumpy()).all() for gradient in gradients)


def test_every_parameter_changes_the_output(ms_runtime):
    """A bias or a norm that is dropped silently is the known fault of ports of this model."""
    from mindspore import Tensor

    model = build(small_options(tie_word_embeddings=False))
    inputs = pack(DOCUMENTS, LENGTH)
    before = run(model, *inputs)
    for parameter in model.get_parameters():
        value = parameter.asnumpy().copy()
        neutral = np.ones_like(value) if parameter.name.endswith("norm.weight") else np.zeros_like(value)
        parameter.set_data(Tensor(neutral))
        difference = np.abs(run(model, *inputs) - before).max()
        parameter.set_data(Tensor(value))
        if not parameter.name.endswith("k_proj.bias"):
            assert difference > 1e-3, parameter.name
        else:  # softmax cancels what a constant key bias adds, up to its rotation: small, but not nothing
            assert difference > 1e-4, parameter.name


def test_gradients_equal_finite_differences(ms_runtime):
    """The attention has its own backward pass: check it, and all else, against float64 NumPy differences."""
    import mindspore as ms
    from mindspore import Tensor, nn

    model = build(small_options(num_hidden_layers=1, vocab_size=11, hidden_size=8, intermediate_size=12))
    generator = np.random.default_rng(2)
    documents = [[generator.integers(1, 11, 4).tolist(), generator.integers(1, 11, 3).tolist()]]
    ids, positions, segments = pack(documents, 8)
    pull_BLV = generator.standard_normal((1, 8, 11)) * (segments > 0)[..., None]

    class Pulled(nn.Cell):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def construct(self, ids, positions, segments, pull):
            return (self.model(ids, positions, segments) * pull).sum()

    def value(weights):
        total, start = 0.0, 0
        for part in documents[0]:
            logits = forward_document(weights, model.options, np.array(part), np.arange(len(part)))
            total += (logits * pull_BLV[0, start : start + len(part)]).sum()
            start += len(part)
        return total

    parameters = list(model.trainable_params())
    inputs = [Tensor(array) for array in (ids, positions, segments, pull_BLV.astype(np.float32))]
    gradients = ms.grad(Pulled(model), None, parameters)(*inputs)
    weights = {name: array.astype(np.float64) for name, array in weights_of(model).items()}
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for _ in range(3):
            where = tuple(generator.integers(0, size) for size in parameter.shape)
            kept, slope = weights[parameter.name][where], 0.0
            for sign in (1, -1):
                weights[parameter.name][where] = kept + sign * 1e-5
                slope += sign * value(weights) / 2e-5
            weights[parameter.name][where] = kept
            np.testing.assert_allclose(gradient.asnumpy()[where], slope, rtol=2e-3, atol=2e-4, err_msg=parameter.name)


def test_recompute_changes_nothing(ms_runtime):
    import mindspore as ms
    from mindspore import Tensor, nn

    class Total(nn.Cell):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def construct(self, ids, positions, segments):
            return (self.model(ids, positions, segments) ** 2).sum()

    inputs = [Tensor(array) for array in pack(DOCUMENTS, LENGTH)]
    found = []
    for recompute in (False, True):
        model = build(small_options(recompute=recompute))
        gradients = ms.grad(Total(model), None, model.trainable_params())(*inputs)
        found.append([gradient.asnumpy() for gradient in gradients])
    for plain, again in zip(*found, strict=True):
        np.testing.assert_allclose(plain, again, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_names_shapes_and_count_are_the_published_ones(ms_runtime, shape):
    from mindspore_impl.model.pangu import PanguForCausalLM, parameter_count, parameter_shapes

    options = small_options(**SHAPES[shape])
    model = PanguForCausalLM(options, seed=0)
    built = {parameter.name: tuple(parameter.shape) for parameter in model.get_parameters()}
    assert built == parameter_shapes(options)
    assert parameter_count(options) == sum(int(np.prod(size)) for size in built.values())
    assert "model.layers.1.self_attn.q_proj.weight" in built and "model.norm.weight" in built
    assert ("lm_head.weight" in built) == (not options.tie_word_embeddings)
    assert model.lm_head_weight.name == "model.embed_tokens.weight" or not options.tie_word_embeddings


def test_names_survive_a_wrapping_cell(ms_runtime):
    from mindspore import nn

    class Wrapper(nn.Cell):
        def __init__(self, model):
            super().__init__()
            self.student = model

    model = build(small_options())
    names = list(weights_of(model))
    assert [parameter.name for parameter in Wrapper(model).get_parameters()] == names


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
        (
            {"num_key_value_heads": 3},
            "models.student.num_key_value_heads: 3 does not divide num_attention_heads 4; nearest: 2",
        ),
        (
            {"hidden_size": 26},
            "models.student.hidden_size: 26 is not a multiple of num_attention_heads 4; nearest: 24 or 28",
        ),
        ({"hidden_size": 12}, "models.student.head_dim: 3 is odd"),
        ({"head_dim": 7}, "models.student.head_dim: 7 is odd"),
        ({"head_dim": -2}, "models.student.head_dim: must be positive"),
        ({"head_dim": 0}, "models.student.head_dim: must be positive"),
        ({"vocab_size": 0}, "models.student.vocab_size: must be positive, found 0"),
        ({"num_hidden_layers": -1}, "models.student.num_hidden_layers: must be positive"),
        ({"rms_norm_eps": 0.0}, "models.student.rms_norm_eps: must be positive"),
        ({"rope_theta": float("nan")}, "models.student.rope_theta: must be positive"),
        ({"initializer_range": -1.0}, "models.student.initializer_range: must not be negative"),
    ],
)
def test_check_options_names_the_key(changes, message):
    from mindspore_impl.model.pangu import check_options

    with pytest.raises(UserError) as caught:
        check_options(small_options(**changes), "models.student")
    assert message in str(caught.value)


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
    fused = build(small_options())
    np.testing.assert_allclose(run(fused, *inputs)[inputs[2] > 0], _tied_logits(tied, inputs), rtol=1e-4, atol=1e-4)
    assert set(ascend) == {"rms_norm", "swiglu", "rotary", "flash"}


def _tied_logits(model, inputs):
    return run(model, *inputs)[inputs[2] > 0]


def test_half_precision_computes_with_float32_masters(ms_runtime, monkeypatch):
    """float16 stands in for Ascend's bfloat16, which has no CPU kernels."""
    import mindspore as ms

    expected = run(build(small_options()), *pack(DOCUMENTS, LENGTH))
    monkeypatch.setattr(ms_runtime, "compute_dtype", lambda: ms.float16)
    model = build(small_options())
    found = run(model, *pack(DOCUMENTS, LENGTH))
    assert found.dtype == np.float32 and all(parameter.dtype == ms.float32 for parameter in model.get_parameters())
    assert 1e-6 < np.abs(found - expected).max() < 0.05
