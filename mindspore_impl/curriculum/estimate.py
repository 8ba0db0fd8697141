"""Modelled memory of a stage on one device, before it runs (a simple model, not measured).

Everything is counted as fp32, whatever the compute dtype.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from mindspore_impl.data.options import BatchOptions
from mindspore_impl.model.options import LoraOptions, ModelOptions
from mindspore_impl.runtime import RuntimeOptions

BYTES_PER_ELEMENT = 4
BYTES_PER_PARAMETER = 8  # of one that is trained: weight and gradient
BYTES_OF_MOMENTS = 8  # of one that is trained: AdamW's two


def training_estimate(
    model: ModelOptions, data: BatchOptions, lora: LoraOptions | None, runtime: RuntimeOptions
) -> dict[str, int]:
    """Parameters, trained parameters and modelled bytes of one training step on one of `runtime.workers` devices.

    With LoRA the model's own parameters are weights alone, and its tied embedding has no gradient. Counts every layer's
    activations (one layer's when layers are recomputed) of the rows that a device holds at a time, one chunk of logits
    and of their gradient, and a tied embedding's own gradient.
    """
    from mindspore_impl.model.adapter_file import adapter_count
    from mindspore_impl.model.pangu import parameter_count

    rows = max(1, data.rows // (data.gradient_accumulation_steps * runtime.workers))
    layers = 1 if model.recompute else model.num_hidden_layers
    activations = layers * _layer_elements(model, rows, data.sequence_length)
    logits = 2 * _logits_elements(rows * data.sequence_length, model, runtime)
    frozen, trained, embedding = 0, parameter_count(model), 0
    if lora is not None:
        frozen, trained = trained, adapter_count(model, lora)
    elif model.tie_word_embeddings:
        embedding = model.vocab_size * model.hidden_size
    moments = BYTES_OF_MOMENTS * -(-trained // (runtime.workers if runtime.shard_optimizer else 1))
    size = BYTES_PER_PARAMETER * trained + moments + BYTES_PER_ELEMENT * (frozen + activations + logits + embedding)
    return {"parameters": frozen + trained, "trained": trained, "bytes": size}


def forward_bytes(model: ModelOptions, rows: int, sequence_length: int, runtime: RuntimeOptions) -> int:
    """Bytes of a forward pass over packed rows: weights, one layer's activations, the logits that exist at once."""
    elements = _layer_elements(model, rows, sequence_length)
    elements += _logits_elements(rows * sequence_length, model, runtime)
    return weights_bytes(model) + BYTES_PER_ELEMENT * elements


def decoding_bytes(model: ModelOptions, batch_size: int, max_new_tokens: int) -> int:
    """Bytes of batched decoding: weights, key/value cache (prompts as long as answers), the logits of one step."""
    from mindspore_impl.model.pangu import head_dim

    cache = 2 * model.num_hidden_layers * 2 * max_new_tokens * model.num_key_value_heads * head_dim(model)
    return weights_bytes(model) + BYTES_PER_ELEMENT * batch_size * (cache + model.vocab_size)


def room_problem(folder: Path, sizes: dict[str, int]) -> Iterator[str]:
    """Whether the disk of `folder` has too little room for what the stages write: `sizes`, bytes by name."""
    free, needed = shutil.disk_usage(folder).free, sum(sizes.values())
    if needed > free:
        most = max(sizes, key=sizes.get)
        yield (
            f"run_dir: {folder}: {free / 1e9:.2f} GB of the disk are free, and the stages write about "
            f"{needed / 1e9:.2f} GB (modelled; most of it stages.{most}); free some, or choose another run_dir"
        )


def weights_bytes(model: ModelOptions) -> int:
    """Bytes of the weights alone."""
    from mindspore_impl.model.pangu import parameter_count

    return BYTES_PER_ELEMENT * parameter_count(model)


def _logits_elements(tokens: int, model: ModelOptions, runtime: RuntimeOptions) -> int:
    """Logits that exist at once: those of all tokens, or one chunk of `runtime.logits_mb`."""
    return min((runtime.logits_mb << 20) // BYTES_PER_ELEMENT, tokens * model.vocab_size)


def _layer_elements(model: ModelOptions, rows: int, length: int) -> int:
    """Activations of one layer: about 14 hidden-sized and 3 FFN-sized tensors, and two score matrices."""
    wide = 14 * model.hidden_size + 3 * model.intermediate_size
    return rows * (length * wide + 2 * model.num_attention_heads * length**2)
