"""One training step: ours (packed mask, global-norm clipping, skip of non-finite steps, fused AdamW) against peers.

Peers: mindformers' legacy Llama with its AdamW (default mask, no clipping), the nearest model that ships for MindSpore;
and, where torch and transformers are installed (extra `bench`), transformers' Llama in eager mode.
"""

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mindspore_impl import runtime
from mindspore_impl.speed.common import Row, alternate, compared, medians, publish

NAME = "train_step"
VOCAB, HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 512, 128, 344, 4, 4, 2
ROWS, LENGTH = 8, 128
PARAMETERS = 858_752
CASE = f"{ROWS} x {LENGTH} tokens, {LAYERS} x {HIDDEN}, vocabulary {VOCAB}, fp32"
DECAY, RATE = 0.1, 1e-3


def run(json_path: str | Path | None = None, rounds: int = 25, calls: int = 4) -> list[Row]:
    """Measure, print, append to outputs/benchmarks.csv, write JSON on request."""
    runtime.setup(runtime.RuntimeOptions(), seed=0)
    compile_seconds: dict[str, float] = {}
    runs: dict[str, Callable[[], object]] = {}
    for name, build in {"ours": ours, "mindformers": mindformers_llama}.items():
        runs[name] = build()
        start = time.perf_counter()
        runs[name]()
        compile_seconds[name] = time.perf_counter() - start
    versions = runtime.versions()
    if find_spec("torch") and find_spec("transformers"):
        import torch
        import transformers

        runs["torch"] = torch_llama()
        versions |= {"torch": torch.__version__, "transformers": transformers.__version__}
    seconds = medians(alternate(runs, rounds, calls))
    rate = {name: ROWS * LENGTH / value for name, value in seconds.items()}
    rows = [
        compared(NAME, CASE, "throughput", "tokens/s", rate["ours"], rate[peer], words, True, versions=versions)
        for peer, words in (("mindformers", "mindformers legacy Llama"), ("torch", "transformers Llama, torch eager"))
        if peer in rate
    ]
    rows.append(
        compared(
            NAME, CASE, "first step", "s", compile_seconds["ours"], compile_seconds["mindformers"],
            "mindformers legacy Llama", False, versions=versions,
        )
    )  # fmt: skip
    publish(rows, json_path)
    return rows


def ours() -> Callable[[], float]:
    """Our model, two documents packed in every row, cross entropy, clipping at norm 1, AdamW with a cosine schedule."""
    from mindspore_impl.losses.objective import METRICS, LossNetwork, tensors_of
    from mindspore_impl.losses.options import ObjectiveOptions
    from mindspore_impl.training.optimizer import make_optimizer
    from mindspore_impl.training.step import make_step

    model, settings = model_and_options()
    optimizer = make_optimizer(list(model.trainable_params()), settings, 10_000)
    step = make_step(LossNetwork(model, ObjectiveOptions(), False), optimizer, settings.max_grad_norm, 1, len(METRICS))
    batch = packed_batch()
    return lambda: step([tensors_of(batch, False)]).loss


def model_and_options() -> tuple:
    """-> our model of the sizes above, and the options of its optimizer."""
    from mindspore_impl.model.options import ModelOptions
    from mindspore_impl.model.pangu import PanguForCausalLM
    from mindspore_impl.training.options import OptimizerOptions

    sizes = ModelOptions(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, tie_word_embeddings=False,
    )  # fmt: skip
    model = PanguForCausalLM(sizes, seed=0)
    _check_size(sum(parameter.size for parameter in model.trainable_params()))
    return model, OptimizerOptions(learning_rate=RATE, weight_decay=DECAY, max_grad_norm=1.0)


def packed_batch():
    """ROWS x LENGTH tokens, two documents a row, everything supervised but each document's last position."""
    from mindspore_impl.data.batches import PackedBatch

    ids_BL, half = _tokens()[:, :LENGTH], LENGTH // 2
    position_BL = np.tile(np.arange(LENGTH, dtype=np.int32) % half, (ROWS, 1))
    supervised_BL = position_BL != half - 1
    target_BL = np.where(supervised_BL, np.roll(ids_BL, -1, axis=1), 0).astype(np.int32)
    segment_BL = np.tile(1 + np.arange(LENGTH, dtype=np.int32) // half, (ROWS, 1))
    weight_BL = (supervised_BL / supervised_BL.sum()).astype(np.float32)
    return PackedBatch(np.ascontiguousarray(ids_BL), target_BL, segment_BL, position_BL, weight_BL)


def mindformers_llama() -> Callable[[], float]:
    """mindformers' legacy Llama with the biases of openPangu, in the form that trains on the CPU, and its AdamW."""
    import mindspore as ms
    from mindspore import nn

    from mindspore_impl.training.mindformers import import_mindformers

    import_mindformers("core.optim", "models.llama")
    from mindformers.core.optim import AdamW
    from mindformers.models.llama import LlamaConfig, LlamaForCausalLM

    types = ("compute_dtype", "param_init_type", "layernorm_compute_type", "softmax_compute_type", "rotary_dtype")
    config = LlamaConfig(
        batch_size=ROWS, seq_length=LENGTH, vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=INNER,
        num_layers=LAYERS, num_heads=HEADS, n_kv_heads=KV_HEADS, pad_token_id=0, qkv_has_bias=True,
        attn_proj_has_bias=True, use_rope_slice=True, fused_rms_norm=False, use_flash_attention=False,
        **dict.fromkeys(types, "float32"),
    )  # fmt: skip
    network = LlamaForCausalLM(config)
    _check_size(sum(parameter.size for parameter in network.trainable_params()))
    optimizer = AdamW(network.trainable_params(), learning_rate=RATE, weight_decay=DECAY)
    step = nn.TrainOneStepCell(network, optimizer)
    step.set_train()
    ids = _tokens()  # one token more than LENGTH: it shifts by itself
    return lambda: float(step(ms.Tensor(ids)).asnumpy().reshape(-1)[0])


def torch_llama() -> Callable[[], float]:
    """transformers' Llama of the same sizes in eager mode with explicit softmax, torch's AdamW, causal mask."""
    import os

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, attention_bias=True, tie_word_embeddings=False,
        use_cache=False, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    _check_size(sum(parameter.numel() for parameter in model.parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, foreach=True)
    ids = torch.tensor(_tokens()[:, :LENGTH].astype(np.int64))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def _check_size(parameters: int) -> None:
    """All three have the same parameters (embeddings are not tied, as in the legacy Llama by default)."""
    if parameters != PARAMETERS:
        raise ValueError(f"{parameters} parameters instead of {PARAMETERS}: the comparison would not be fair")


def _tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(1, VOCAB, (ROWS, LENGTH + 1)).astype(np.int32)
