"""Sizes of a stage before it runs: parameters, tokens, and memory from a simple model (modelled, not measured)."""

from mindspore_impl.config import STAGE_KINDS, Stage
from mindspore_impl.model.options import ModelOptions

BYTES_PER_PARAMETER = 16  # fp32 weights, gradients and two AdamW moments


def training_estimate(model: ModelOptions, stage: Stage) -> dict[str, int]:
    """Parameters and modelled bytes of one training step on one device.

    Activations are counted at 4 bytes: about 14 hidden-sized and 3 FFN-sized tensors a layer plus two score matrices
    (one layer only when layers are recomputed), and five copies of the logits.
    """
    from mindspore_impl.model.pangu import parameter_count

    data = stage.data
    rows = max(1, data.rows // data.accumulation)
    tokens = rows * data.sequence_length
    per_layer = tokens * (14 * model.hidden_size + 3 * model.intermediate_size)
    per_layer += 2 * rows * model.num_heads * data.sequence_length**2
    layers = 1 if model.recompute else model.num_layers
    logits = 5 * tokens * model.vocab_size
    parameters = parameter_count(model)
    return {"parameters": parameters, "bytes": BYTES_PER_PARAMETER * parameters + 4 * (layers * per_layer + logits)}


def describe_work(stage: Stage) -> str:
    """The amount of work in words, for the plan: steps and tokens, prompts, or sets."""
    if isinstance(stage, STAGE_KINDS["sft"] | STAGE_KINDS["distill"]):
        size = stage.data.rows * stage.data.sequence_length
        if stage.train.steps:
            return f"{stage.train.steps:,} steps x {size:,} tokens = {stage.train.steps * size / 1e6:.2f}M"
        return f"{stage.train.epochs:g} epochs, {size:,} tokens a step"
    if isinstance(stage, STAGE_KINDS["rollout"]):
        return f"{stage.rollout.samples_per_prompt} x prompts of {', '.join(stage.prompts)}"
    if isinstance(stage, STAGE_KINDS["capture"]):
        return f"{stage.capture.mode} K={stage.capture.top_k} at T={stage.capture.temperature:g}"
    return ""
