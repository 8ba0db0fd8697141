"""Our model against transformers' Llama on PyTorch: the same files, the same numbers (fp32, CPU)."""

from types import SimpleNamespace

import numpy as np
import pytest

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BOS = 1
SIZES = {
    "small": dict(vocab_size=97, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, initializer_range=0.06),
    "wide": dict(vocab_size=512, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=12,
                 num_key_value_heads=6, head_dim=32, initializer_range=0.03),
    "published_heads": dict(vocab_size=2048, hidden_size=512, intermediate_size=2048, num_hidden_layers=6,
                            num_attention_heads=4, num_key_value_heads=2, head_dim=128, initializer_range=0.02),
}  # fmt: skip


def llama(folder, size, tied, theta, limit=32768, scale=1.0):
    """A random Llama with every bias and norm away from its trivial value, saved to `folder` by transformers.

    scale: of the layers' matrices; at 1 a random model repeats one token, at 8 its greedy text wanders.
    """
    config = transformers.LlamaConfig(
        **SIZES[size], attention_bias=True, tie_word_embeddings=tied, rope_theta=theta, rms_norm_eps=1e-5,
        max_position_embeddings=limit, bos_token_id=BOS, eos_token_id=2, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "layers" in name:
                parameter.mul_(scale)
    model.save_pretrained(folder, max_shard_size="400KB")
    return model


def ours(folder):
    """The model that a stage with `init: folder` starts from."""
    from mindspore_impl.checkpoint import open_weights
    from mindspore_impl.model.pangu import PanguForCausalLM
    from mindspore_impl.model.weights import load_into

    source = open_weights(folder)
    model = PanguForCausalLM(source.options, initialise=False)
    load_into(model, source)
    model.set_train(False)
    return model


def difference(model, reference, ids_BL, positions_BL):
    """The largest difference of the logits at any position."""
    from mindspore import Tensor

    inputs = (ids_BL, positions_BL, np.ones_like(ids_BL))
    found_BLV = model(*[Tensor(array.astype(np.int32)) for array in inputs]).asnumpy()
    return np.abs(found_BLV - reference_logits(reference, ids_BL, positions_BL)).max()


def reference_logits(model, ids_BL, positions_BL):
    mask = torch.ones(ids_BL.shape, dtype=torch.long)  # without it, positions that jump would count as a new document
    with torch.no_grad():
        return model(torch.tensor(ids_BL), mask, torch.tensor(positions_BL)).logits.numpy()


def draw(size, shape, seed=0):
    return np.random.default_rng(seed).integers(3, SIZES[size]["vocab_size"], shape)


def float64_angles(model):
    """Let the reference compute its rotary angles in float64; nothing else changes."""
    width, theta = model.config.head_dim, float(model.config.rope_theta)

    def forward(x, position_ids):
        frequency = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angle = position_ids[..., None].double() * frequency
        angle = torch.cat((angle, angle), -1)
        return angle.cos().float(), angle.sin().float()

    model.model.rotary_emb.forward = forward


@pytest.mark.parametrize("theta", [4e6, 1.6e7])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_logits(ms_runtime, tmp_path, size, tied, theta):
    """From position 0, across 4096, and spread over 16384 positions. Beyond, see the next test."""
    reference, count = llama(tmp_path, size, tied, theta), 64
    model, ids_BL = ours(tmp_path), draw(size, (2, count))
    spread = np.sort(np.random.default_rng(1).choice(16384, (2, count), replace=False))
    for positions_BL in (np.arange(count), 4064 + np.arange(count), spread):
        assert difference(model, reference, ids_BL, np.broadcast_to(positions_BL, (2, count))) <= 2e-5


@pytest.mark.parametrize("theta", [4e6, 1.6e7])
@pytest.mark.parametrize("size", SIZES)
def test_last_positions(ms_runtime, tmp_path, size, theta):
    """At 32704 to 32767 the float32 angles of the reference are off by 1e-3 radians, and its logits by up to 4e-5:
    with float64 angles, and no other change, it agrees with us to 2e-5 there too."""
    reference, count = llama(tmp_path, size, True, theta), 64
    model, ids_BL = ours(tmp_path), draw(size, (2, count))
    positions_BL = np.broadcast_to(32704 + np.arange(count), (2, count))
    before = difference(model, reference, ids_BL, positions_BL)
    float64_angles(reference)
    after = difference(model, reference, ids_BL, positions_BL)
    assert after <= 2e-5 and before <= 2e-4 and after <= before


@pytest.mark.parametrize(
    ("size", "tied", "theta", "length"),
    [
        ("small", True, 4e6, 5),
        ("small", False, 1.6e7, 4200),
        ("wide", True, 1.6e7, 30),
        ("wide", False, 4e6, 7),
        ("published_heads", True, 4e6, 40),
        ("published_heads", False, 1.6e7, 12),
    ],
)
def test_greedy_text(ms_runtime, tmp_path, size, tied, theta, length):
    """64 tokens of the engine (prefill, then the cache) and of transformers' generate, beyond position 4096 too."""
    from mindspore_impl.generation.engine import Engine
    from mindspore_impl.generation.options import SamplingOptions

    reference = llama(tmp_path, size, tied, theta, limit=4352, scale=8.0)
    prompt = draw(size, length).tolist()
    wanted = reference.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=64, eos_token_id=None, suppress_tokens=[BOS],
        attention_mask=torch.ones((1, length), dtype=torch.long), pad_token_id=0,
    )[0, length:].tolist()  # fmt: skip
    # Ours never draws BOS; to name it as the end of turn too keeps both from stopping.
    tokenizer = SimpleNamespace(vocab_size=SIZES[size]["vocab_size"], bos_id=BOS, eos_id=BOS, pad_id=0)
    engine = Engine(ours(tmp_path), tokenizer)
    sampling = SamplingOptions(temperature=0.0, max_new_tokens=64, batch_size=1)
    found = engine.generate([prompt], sampling, [0])[0].ids
    assert len(wanted) == 64 and len(set(wanted)) > 20
    assert found == wanted


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_the_sft_loss(ms_runtime, tmp_path, size, tied):
    import mindspore as ms
    from mindspore import Tensor

    from mindspore_impl.losses.objective import LossNetwork
    from mindspore_impl.losses.options import ObjectiveOptions

    reference, (rows, length) = llama(tmp_path, size, tied, 4e6), (2, 48)
    ids_BL, target_BL = draw(size, (rows, length), 1), draw(size, (rows, length), 2)
    weight_BL = np.zeros((rows, length), np.float32)
    weight_BL[:, 20:] = 1.0 / (rows * 28)  # a prompt of 20 tokens is not supervised

    logits_BLV = reference(torch.tensor(ids_BL)).logits
    ce_N = torch.nn.functional.cross_entropy(
        logits_BLV.reshape(rows * length, -1), torch.tensor(target_BL).reshape(-1), reduction="none"
    )
    loss = (ce_N * torch.tensor(weight_BL).reshape(-1)).sum()
    loss.backward()

    model = ours(tmp_path)
    network = LossNetwork(model, ObjectiveOptions(kd_weight=0.0), False)
    positions_BL = np.broadcast_to(np.arange(length), (rows, length))
    arrays = (ids_BL, target_BL, weight_BL, np.ones_like(ids_BL), positions_BL)
    inputs = [Tensor(a if a.dtype == np.float32 else a.astype(np.int32)) for a in arrays]
    parameters = list(model.trainable_params())
    (found, _), gradients = ms.value_and_grad(network, None, parameters, has_aux=True)(*inputs)
    assert float(found.asnumpy()) == pytest.approx(loss.item(), rel=1e-6)
    wanted = {name: parameter.grad.numpy() for name, parameter in reference.named_parameters()}
    assert set(wanted) == {parameter.name for parameter in parameters}
    for parameter, gradient in zip(parameters, gradients, strict=True):
        expected = wanted[parameter.name]
        assert np.linalg.norm(gradient.asnumpy() - expected) <= 1e-4 * np.linalg.norm(expected), parameter.name


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_what_we_export(tmp_path, tied, dtype):
    """Import what transformers wrote, export it sharded, load that in transformers: equal to torch's own cast."""
    from mindspore_impl.cli.convert_weights import FolderFormat, export_weights, import_weights

    reference = llama(tmp_path / "hf", "small", tied, 4e6)
    import_weights(tmp_path / "hf", tmp_path / "checkpoint")
    export_weights(tmp_path / "checkpoint", tmp_path / "again", FolderFormat(dtype, "100KB", "llama"))
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    loaded, report = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "again", torch_dtype="auto", output_loading_info=True
    )
    assert not any(report.values()), report
    assert loaded.dtype == kind and loaded.config.tie_word_embeddings == tied
    found = loaded.state_dict()
    for name, value in reference.state_dict().items():
        assert torch.equal(found[name].view(torch.uint8), value.to(kind).view(torch.uint8)), name
