"""Sizes of a stage before it runs: parameters, tokens, and memory from a simple model (modelled, not measured)."""

from mindspore_impl.config import STAGE_KINDS, CaptureStage, EvaluateStage, ExportStage, RolloutStage, ScoreStage, Stage
from mindspore_impl.evaluation.options import EvaluationOptions
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.runtime import RuntimeOptions

BYTES_PER_ELEMENT = 4  # everything is counted as fp32, whatever the compute dtype
BYTES_PER_PARAMETER = 8  # of one that is trained: fp32 weight and gradient
BYTES_OF_MOMENTS = 8  # of one that is trained: AdamW's two, in fp32


def training_estimate(model: ModelOptions, stage: Stage, runtime: RuntimeOptions) -> dict[str, int]:
    """Parameters, those of them that are trained, and modelled bytes of one step on one of `runtime.workers` devices.

    With LoRA the model's own parameters are weights alone, and its tied embedding has no gradient.
    Counts every layer's activations (one layer's when layers are recomputed) of the rows / (accumulation * workers)
    rows that a device holds at a time, one chunk of logits and of their gradient, and a tied embedding's own gradient.
    """
    from mindspore_impl.model.adapter_file import adapter_count
    from mindspore_impl.model.pangu import parameter_count

    data = stage.data
    rows = max(1, data.rows // (data.gradient_accumulation_steps * runtime.workers))
    layers = 1 if model.recompute else model.num_hidden_layers
    activations = layers * _layer_elements(model, rows, data.sequence_length)
    logits = 2 * _logits_elements(rows * data.sequence_length, model, runtime)
    frozen, trained, embedding = 0, parameter_count(model), 0
    if stage.lora is not None:
        frozen, trained = trained, adapter_count(model, stage.lora)
    elif model.tie_word_embeddings:
        embedding = model.vocab_size * model.hidden_size
    moments = BYTES_OF_MOMENTS * -(-trained // (runtime.workers if runtime.shard_optimizer else 1))
    size = BYTES_PER_PARAMETER * trained + moments + BYTES_PER_ELEMENT * (frozen + activations + logits + embedding)
    return {"parameters": frozen + trained, "trained": trained, "bytes": size}


def inference_estimate(
    model: ModelOptions,
    stage: RolloutStage | CaptureStage | ScoreStage | EvaluateStage | ExportStage,
    evaluation: EvaluationOptions,
    runtime: RuntimeOptions,
) -> dict[str, int]:
    """Parameters and modelled bytes on one device of a stage that trains nothing; the weights are fp32.

    Capture and score add one layer's activations of a packed batch and the logits that exist at once; rollout and
    evaluate the key/value cache of a full batch, its prompts taken to be as long as the answers, and the logits of one
    step.
    `evaluation` holds for an evaluate stage without options of its own.
    """
    from mindspore_impl.model.pangu import head_dim, parameter_count

    parameters = parameter_count(model)
    if isinstance(stage, ExportStage):
        from mindspore_impl.export.build import memory_estimate

        extra = memory_estimate(model, stage.export)["weights_shared"]  # the package runs beside the training model
        return {"parameters": parameters, "bytes": BYTES_PER_ELEMENT * parameters + extra}
    if isinstance(stage, CaptureStage | ScoreStage):
        options = stage.capture if isinstance(stage, CaptureStage) else stage.score
        rows, length = options.rows_per_batch, stage.sequence_length
        elements = _layer_elements(model, rows, length)
        elements += _logits_elements(rows * length, model, runtime)
    else:
        decoding = stage.sampling if isinstance(stage, RolloutStage) else stage.options or evaluation
        slots = 2 * decoding.max_new_tokens
        cache = 2 * model.num_hidden_layers * slots * model.num_key_value_heads * head_dim(model)  # keys and values
        elements = decoding.batch_size * (cache + model.vocab_size)
    return {"parameters": parameters, "bytes": BYTES_PER_ELEMENT * (parameters + elements)}


def _logits_elements(tokens: int, model: ModelOptions, runtime: RuntimeOptions) -> int:
    """Logits that exist at once: those of all tokens, or one chunk of `runtime.logits_mb`."""
    return min((runtime.logits_mb << 20) // BYTES_PER_ELEMENT, tokens * model.vocab_size)


def _layer_elements(model: ModelOptions, rows: int, length: int) -> int:
    """Activations of one layer: about 14 hidden-sized and 3 FFN-sized tensors, and two score matrices."""
    wide = 14 * model.hidden_size + 3 * model.intermediate_size
    return rows * (length * wide + 2 * model.num_attention_heads * length**2)


def describe_work(stage: Stage) -> str:
    """The amount of work in words, for the plan: steps and tokens, prompts, or sets."""
    if isinstance(stage, STAGE_KINDS["sft"] | STAGE_KINDS["distill"]):
        size = stage.data.rows * stage.data.sequence_length
        if stage.train.max_steps:
            return f"{stage.train.max_steps:,} steps x {size:,} tokens = {stage.train.max_steps * size / 1e6:.2f}M"
        return f"{stage.train.num_train_epochs:g} epochs, {size:,} tokens a step"
    if isinstance(stage, STAGE_KINDS["rollout"]):
        return f"{stage.rollout.samples_per_prompt} x prompts of {', '.join(stage.prompts)}"
    if isinstance(stage, STAGE_KINDS["capture"]):
        return f"{stage.capture.mode} K={stage.capture.top_k} at T={stage.capture.temperature:g}"
    if isinstance(stage, ScoreStage):
        measured = ["length", *(["loss"] if stage.init else []), *(["pass rate"] if stage.rollouts else [])]
        return f"{', '.join(measured)} of each record of {stage.set}"
    if isinstance(stage, ExportStage):
        return f"{stage.export.precision}, cache {stage.export.cache_length}, buckets {stage.export.buckets}"
    return ""
