"""One training step: ours (packed mask, global-norm clipping, skip of non-finite steps, fused AdamW) against peers.

Peers: mindformers' legacy Llama with its AdamW (default mask, no clipping), the nearest model that ships for MindSpore;
and, where torch and transformers are installed (extra `bench`), transformers' Llama in eager mode.
"""

import os
import time
from collections.abc import Callable
from importlib.util import find_spec

import mindspore as ms
import numpy as np
from mindspore import nn

from mindspore_impl import runtime
from mindspore_impl.data.batches import PackedBatch
from mindspore_impl.losses.objective import METRICS, LossNetwork, tensors_of
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.model.pangu import PanguForCausalLM
from mindspore_impl.speed.common import Row, compared, contest
from mindspore_impl.training.mindformers import import_mindformers
from mindspore_impl.training.optimizer import make_optimizer
from mindspore_impl.training.options import OptimizerOptions
from mindspore_impl.training.step import make_step

SIZES = ModelOptions(
    vocab_size=512, hidden_size=128, intermediate_size=344, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=False,
)  # fmt: skip
PARAMETERS = 858_752  # of all sides
SETTINGS = OptimizerOptions(learning_rate=1e-3, weight_decay=0.1, max_grad_norm=1.0)
ROWS, LENGTH = 8, 128
CASE = f"{ROWS} x {LENGTH} tokens, {SIZES.num_hidden_layers} x {SIZES.hidden_size}, vocabulary {SIZES.vocab_size}, fp32"


def rows(rounds: int = 25, calls: int = 4) -> list[Row]:
    """Throughput against each peer, and the seconds of the first step, which compiles."""
    runtime.setup(runtime.RuntimeOptions(), seed=0)
    runs, compile_seconds = {}, []
    for name, build in (("ours", ours), ("mindformers legacy Llama", mindformers_llama)):
        runs[name] = build()
        start = time.perf_counter()
        runs[name]()
        compile_seconds.append(time.perf_counter() - start)
    if find_spec("torch") and find_spec("transformers"):
        runs["transformers Llama, torch eager"] = torch_llama()
    speed = contest(CASE, "throughput", "tokens/s", runs, rounds, lambda s: ROWS * LENGTH / s, higher=True, calls=calls)
    return [*speed, compared(CASE, "first step", "s", *compile_seconds, "mindformers legacy Llama")]


def make_training(
    sizes: ModelOptions = SIZES, settings: OptimizerOptions = SETTINGS, updates: Callable = make_optimizer,
    shares: int = 1, ranks: int = 1,
) -> tuple[Callable[[PackedBatch], float], nn.Cell, nn.Cell]:  # fmt: skip
    """-> a training step (batch -> its loss), the model with seed 0, and its optimizer. Cross entropy, clipping.

    Args:
        sizes: of the model.
        settings: of the optimizer.
        updates: (weights, settings, steps, shares) -> an optimizer.
        shares: how many processes the optimizer is cut among.
        ranks: how many processes train.
    """
    model = PanguForCausalLM(sizes, seed=0)
    optimizer = updates(list(model.trainable_params()), settings, 10_000, shares)
    network = LossNetwork(model, ObjectiveOptions(), False)
    step = make_step(network, optimizer, settings.max_grad_norm, 1, len(METRICS), ranks)
    return lambda batch: step([tensors_of(batch, False)]).loss, model, optimizer


def ours() -> Callable[[], float]:
    """Our model, two documents packed in every row, cross entropy, clipping at norm 1, AdamW with a cosine schedule."""
    step, model, _ = make_training()
    _check_size(parameter.size for parameter in model.trainable_params())
    batch = packed_batch()
    return lambda: step(batch)


def packed_batch() -> PackedBatch:
    """ROWS x LENGTH tokens, two documents a row, everything supervised but each document's last position."""
    ids_BL, half = _tokens()[:, :LENGTH], LENGTH // 2
    position_BL = np.tile(np.arange(LENGTH, dtype=np.int32) % half, (ROWS, 1))
    supervised_BL = position_BL != half - 1
    target_BL = np.where(supervised_BL, np.roll(ids_BL, -1, axis=1), 0).astype(np.int32)
    segment_BL = np.tile(1 + np.arange(LENGTH, dtype=np.int32) // half, (ROWS, 1))
    weight_BL = (supervised_BL / supervised_BL.sum()).astype(np.float32)
    return PackedBatch(np.ascontiguousarray(ids_BL), target_BL, segment_BL, position_BL, weight_BL)


def mindformers_llama() -> Callable[[], float]:
    """mindformers' legacy Llama with the biases of openPangu, in the form that trains on the CPU, and its AdamW."""
    import_mindformers("core.optim", "models.llama")
    from mindformers.core.optim import AdamW
    from mindformers.models.llama import LlamaConfig, LlamaForCausalLM

    types = ("compute_dtype", "param_init_type", "layernorm_compute_type", "softmax_compute_type", "rotary_dtype")
    config = LlamaConfig(
        batch_size=ROWS, seq_length=LENGTH, vocab_size=SIZES.vocab_size, hidden_size=SIZES.hidden_size,
        intermediate_size=SIZES.intermediate_size, num_layers=SIZES.num_hidden_layers,
        num_heads=SIZES.num_attention_heads, n_kv_heads=SIZES.num_key_value_heads, pad_token_id=0, qkv_has_bias=True,
        attn_proj_has_bias=True, use_rope_slice=True, fused_rms_norm=False, use_flash_attention=False,
        **dict.fromkeys(types, "float32"),
    )  # fmt: skip
    network = LlamaForCausalLM(config)
    weights = network.trainable_params()
    _check_size(parameter.size for parameter in weights)
    optimizer = AdamW(weights, learning_rate=SETTINGS.learning_rate, weight_decay=SETTINGS.weight_decay)
    step = nn.TrainOneStepCell(network, optimizer)
    step.set_train()
    ids = _tokens()  # one token more than LENGTH: it shifts by itself
    return lambda: float(step(ms.Tensor(ids)).asnumpy().reshape(-1)[0])


def torch_llama() -> Callable[[], float]:
    """transformers' Llama of the same sizes in eager mode with explicit softmax, torch's AdamW, causal mask."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "tie_word_embeddings")  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(
        **{name: getattr(SIZES, name) for name in same}, attention_bias=True, use_cache=False,
        attn_implementation="eager",
    ))  # fmt: skip
    _check_size(parameter.numel() for parameter in model.parameters())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=SETTINGS.learning_rate, weight_decay=SETTINGS.weight_decay, foreach=True
    )
    ids = torch.tensor(_tokens()[:, :LENGTH].astype(np.int64))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS.max_grad_norm)
        optimizer.step()
        return float(loss.detach())

    return step


def _check_size(sizes) -> None:
    """All sides have the same parameters (embeddings are not tied, as in the legacy Llama by default)."""
    if (found := sum(sizes)) != PARAMETERS:
        raise ValueError(f"{found} parameters instead of {PARAMETERS}: the comparison would not be fair")


def _tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(1, SIZES.vocab_size, (ROWS, LENGTH + 1)).astype(np.int32)
