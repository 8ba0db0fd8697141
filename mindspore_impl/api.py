"""The functions of the public API that no room has in this form; `mindspore_impl/__init__.py` lists the whole API.

They take paths, text, records and arrays where the rooms take resolved objects, and validate options given by hand.
Legend: N tokens, V vocabulary, K teacher ids a token, B rows, L positions.
"""

import functools
import hashlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mindspore import Tensor, nn

from mindspore_impl import files, runtime, schema
from mindspore_impl.curriculum import launch, resolve, runner
from mindspore_impl.curriculum.configuration import Config
from mindspore_impl.data.batches import BatchStream, PackedBatch, one_pass
from mindspore_impl.data.options import BatchOptions, DatasetOptions
from mindspore_impl.data.sources import load_set, set_kinds
from mindspore_impl.data.teacher_store import StoreReader
from mindspore_impl.distill.capture import run_capture
from mindspore_impl.distill.jobs import CaptureJob
from mindspore_impl.distill.options import CaptureOptions
from mindspore_impl.errors import UserError
from mindspore_impl.export.session import open_session
from mindspore_impl.generation.conversation import Conversation
from mindspore_impl.generation.decoder import Decoder, Drawing, stream
from mindspore_impl.generation.engine import Engine, ModelDecoder
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.losses.fused_linear import row_operator
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.losses.oracle import ce_weight, check_objective
from mindspore_impl.model import weights
from mindspore_impl.model.hf_config import MODEL_TYPES, config_of, token_ids
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.model.pangu import PanguForCausalLM
from mindspore_impl.schema import checked
from mindspore_impl.text.chat import Completion, parse_completion, render_prompt, samples_of
from mindspore_impl.text.records import THINKING, Message, Record, check_text, parse_messages
from mindspore_impl.text.tokenizer import Tokenizer

SHARD_BYTES = 5 * 10**9  # of one weights file that `save_model` writes


def setup(device: str = "auto", threads: int = 0, precision: str = "auto", seed: int = 0) -> None:
    """Choose device and precision, and seed every generator. Functions that build a model call it if you did not.

    device: "auto" (Ascend when an NPU answers, else the CPU), "CPU" or "Ascend"; threads: of operators on the CPU, 0
    for all cores; precision: "auto" (fp32 on the CPU, bf16 on Ascend), "fp32" or "bf16"; seed: of Python, NumPy and
    MindSpore. Device and threads count once a process. Raises UserError for a value that is unknown or not available.
    """
    options = runtime.RuntimeOptions(device=device, threads=threads, precision=precision)
    runtime.setup(checked(options, "setup"), seed)


def new_model(options: ModelOptions, seed: int = 0) -> PanguForCausalLM:
    """Build a model with random weights, a function of `seed` and `options`, whose vocab_size must be given.

    Raises UserError for sizes that do not fit together.
    """
    runtime.ensure_setup()
    return PanguForCausalLM(checked(options, "model"), seed)


def load_model(path: str | Path, tokenizer: Tokenizer | None = None) -> PanguForCausalLM | Decoder:
    """Load a model for inference or further training.

    path: a run directory (its last trained stage), a stage folder, a checkpoint, a Hugging Face folder, or an export
    package, which gives a Decoder for `chat` and `generate`. tokenizer: refuse a model that does not fit it; None: the
    one found there, if any. Raises UserError: no model there, damaged weights, unknown sizes, or another tokenizer.
    """
    found = resolve.resolve_model_path(path)
    if tokenizer is None and found.tokenizer is not None:
        tokenizer = load_tokenizer(path)
    runtime.ensure_setup()
    if not found.is_package:
        return resolve.load_model(found, tokenizer)[0]
    session = open_session(found.weights)
    if tokenizer is not None:
        session.package.check_tokenizer(tokenizer)
    return session


def load_tokenizer(path: str | Path, template: str | None = None) -> Tokenizer:
    """Load a tokenizer with its chat template.

    path: a `tokenizer.model` or `tokenizer.json`, or a model path as for `load_model`. template: name of a chat
    template; None: that of the run, else "pangu" for a `tokenizer.model` and "chatml" for a `tokenizer.json`. Raises
    UserError: no tokenizer there, a damaged file, or one that lacks a piece of the template.
    """
    path = Path(path)
    if path.is_file() and path.name.endswith((".model", ".json")):
        return Tokenizer.load(path, template)
    return resolve.open_tokenizer(path, resolve.resolve_model_path(path), None, template)


def save_model(
    model: PanguForCausalLM,
    tokenizer: Tokenizer,
    folder: str | Path,
    dtype: str = "fp32",
    model_type: str = "PanguEmbedded",
) -> Path:
    """Write a Hugging Face folder: config.json, safetensors weights and the tokenizer's file; return the folder.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        folder: a new or empty folder.
        dtype: of the stored weights: "fp32", "bf16" or "fp16".
        model_type: "PanguEmbedded", or "llama", which transformers and vLLM load without further code.

    Raises UserError: the folder is not empty, the disk is full, or no config.json can describe the model.
    """
    _known(dtype, weights.DTYPES, "dtype")
    _known(model_type, MODEL_TYPES, "model_type")
    parameters = {parameter.name: parameter for parameter in model.get_parameters()}
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    source = weights.WeightSource(Path(folder), (), shapes, lambda name: _float32(parameters[name]), model.options)
    source = weights.fit(source, model.options)
    config = config_of(model.options, model_type, token_ids(tokenizer))

    def fill(temporary: Path) -> None:
        weights.write_hf(temporary, source, config, dtype, SHARD_BYTES)
        shutil.copyfile(tokenizer.path, temporary / tokenizer.path.name)

    files.new_folder(folder, fill)
    return Path(folder)


def generate(
    model: PanguForCausalLM | Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str | list[dict]],
    sampling: SamplingOptions | None = None,
    thinking: str = "fast",
    seed: int = 0,
) -> list[Completion]:
    """Answer prompts, rendered with the tokenizer's chat template. Later calls reuse compiled graphs of equal shapes.

    Args:
        model: from `load_model` or `new_model`.
        tokenizer: the model's tokenizer.
        prompts: for each a user's text, or messages [{"role", "content"}, ...] that end with the user's.
        sampling: decoding settings; None: greedy, at most 96 new tokens.
        thinking: "fast" or "reasoning".
        seed: answer i is sampled with seed + i, whatever is in its batch.

    Raises UserError: a setting out of range, or a prompt that is malformed or too long.
    """
    sampling = checked(sampling or SamplingOptions(temperature=0.0), "sampling")
    _known(thinking, THINKING, "thinking")
    ids, seeds = [], range(seed, seed + len(prompts))
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            messages = [Message("user", check_text(prompt, f"prompts[{number}]"))]
        else:
            messages = parse_messages(prompt, f"prompts[{number}]")
        ids.append(render_prompt(messages, tokenizer, thinking))
    if isinstance(model, PanguForCausalLM):
        kept = getattr(model, "kept_engine", None)  # with its compiled graphs
        if kept is None or kept[0] is not tokenizer:
            kept = model.kept_engine = (tokenizer, Engine(model, tokenizer))
        found = [made.ids for made in kept[1].generate(ids, sampling, list(seeds))]
    else:
        drawing = Drawing(tokenizer, model.vocab_size)
        found = [list(stream(model, drawing, prompt, sampling, one)) for prompt, one in zip(ids, seeds, strict=True)]
    return [parse_completion(answer, tokenizer) for answer in found]


def chat(
    model: PanguForCausalLM | Decoder,
    tokenizer: Tokenizer,
    sampling: SamplingOptions | None = None,
    thinking: str = "fast",
    system: str | None = None,
    context: int = 2048,
    seed: int = 0,
) -> Conversation:
    """Start a conversation. Its `ask(text)` yields the answer as ("reasoning" | "answer", text) parts.

    Args:
        model: from `load_model` or `new_model`.
        tokenizer: the model's tokenizer.
        sampling: decoding settings; None: greedy, at most 96 new tokens an answer.
        thinking: "fast" or "reasoning"; the attribute may change between turns.
        system: content of the system turn; None: the template's default.
        context: tokens of the whole conversation, at most the model's limit; a package has its own.
        seed: of the draws.

    Raises UserError: a setting out of range; while asking, a conversation that no longer fits.
    """
    if context < 2:
        raise UserError(f"context: {context} is too short; use 2 or more")
    if isinstance(model, PanguForCausalLM):
        model = ModelDecoder(model, min(context, model.options.max_position_embeddings))
    sampling = checked(sampling or SamplingOptions(temperature=0.0), "sampling")
    return Conversation(model, tokenizer, sampling, seed, _known(thinking, THINKING, "thinking"), system)


def read_records(
    path: str | Path | None = None, source: str = "records", thinking: str = "fast", seed: int = 0, **options: Any
) -> list[Record]:
    """Read conversation records from a file (JSON lines, or one JSON array), or from a source that needs none.

    Args:
        path: the file; None for a source without one.
        source: "records", "gsm8k", "alpaca", "sharegpt", "prompt_answer", "list_programs", or a registered one.
        thinking: "fast" or "reasoning", where the file does not say it record by record.
        seed: of a generated source.
        options: other fields of the source's options, such as skip=10, count=100.

    Raises UserError: an unknown source or option, or malformed data; names the file, the line and the field.
    """
    given = {"source": source, "thinking": thinking, **options} | ({} if path is None else {"path": str(path)})
    name = "records" if path is None else Path(path).name
    return load_set(name, schema.build(DatasetOptions, given, "read_records", set_kinds()), seed)


def make_batches(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    options: BatchOptions | None = None,
    teacher: StoreReader | None = None,
    seed: int = 0,
) -> BatchStream:
    """Render records and pack them into an endless stream of training steps, shuffled anew in each epoch.

    `stream.step(n)` is a list of micro-batches (PackedBatch) with int32 input_ids_BL, target_ids_BL, segment_ids_BL and
    position_ids_BL, float32 loss_weight_BL, and with a teacher teacher_ids_BLK, teacher_logp_BLK, teacher_tail_logp_BL.

    Args:
        records: each ends with an assistant's turn.
        tokenizer: the model's tokenizer.
        options: sequence_length, rows, gradient_accumulation_steps, overlong and order; None: the defaults.
        teacher: an open store (`open_store`) that holds every record.
        seed: of the shuffles.

    Raises UserError: names the record that cannot be rendered, does not fit, or is not in the store.
    """
    samples = samples_of(records, tokenizer)
    options = checked(options or BatchOptions(), "data")
    return BatchStream({"records": samples}, options, seed, runtime.rank(), runtime.world_size(), teacher)


def validation_batches(
    records: Sequence[Record], tokenizer: Tokenizer, sequence_length: int = 128, rows: int = 8
) -> list[PackedBatch]:
    """Render records, each ending with an assistant's turn, and pack each once, for `TrainingJob.validation`.

    tokenizer: the model's; sequence_length: L of a packed row, that of the training batches saves a compilation; rows:
    B of a batch, the last is filled up. Raises UserError: names the record that cannot be rendered or does not fit.
    """
    samples = samples_of(records, tokenizer)
    return [batch for batch, _ in one_pass(samples, sequence_length, rows)]


def capture(
    model: PanguForCausalLM,
    tokenizer: Tokenizer,
    records: Sequence[Record],
    folder: str | Path,
    options: CaptureOptions | None = None,
    sequence_length: int = 128,
    seed: int = 0,
) -> dict[str, float]:
    """Store a teacher's distribution at every supervised position of records, resuming an interrupted capture.

    Returns the metrics of `distill.capture.run_capture`: positions, teacher_mass, teacher_entropy, tail, ...

    Args:
        model: the teacher.
        tokenizer: shared by teacher and student.
        records: each ends with an assistant's turn, which is scored.
        folder: where the store is written; `open_store(folder)` reads it.
        options: mode, top_k, temperature and others; None: the ten most probable ids at temperature 1.
        sequence_length: L, tokens of a packed row.
        seed: of the draws in mode "sampled".

    Raises UserError: a record that does not fit, or a folder that holds the store of another teacher.
    """
    options = checked(options or CaptureOptions(), "capture")
    digest = hashlib.sha256()
    for parameter in model.get_parameters():
        digest.update(parameter.name.encode())
        digest.update(_float32(parameter).tobytes())
    samples = samples_of(records, tokenizer)
    fixed = {"sequence_length": sequence_length, "weights_sha256": digest.hexdigest(), "model": model}
    return run_capture(CaptureJob(tokenizer, samples, options, Path(folder), seed, **fixed))


def open_store(folder: str | Path, tokenizer: Tokenizer | None = None) -> StoreReader:
    """Open a teacher store (the `folder` of `capture` or of a capture stage), with the hash of every shard verified.

    tokenizer: refuse the store of another one. Raises UserError: no finished store there, a damaged shard, or another
    tokenizer.
    """
    inner = Path(folder) / "store"
    return StoreReader(inner if inner.is_dir() else folder, tokenizer and tokenizer.sha256)


class DistillationLoss(NamedTuple):
    """What `distillation_loss` returns. ce_N is at temperature 1, kd_N carries T^2; neither carries a weight."""

    loss: float
    ce_N: np.ndarray  # float32, nats
    kd_N: np.ndarray  # float32, nats
    gradient_NV: np.ndarray  # float32, of `loss` with respect to the logits


def distillation_loss(
    logits_NV: np.ndarray,
    target_ids_N: np.ndarray,
    teacher_ids_NK: np.ndarray,
    teacher_logp_NK: np.ndarray,
    teacher_tail_logp_N: np.ndarray,
    options: ObjectiveOptions,
    weight_N: np.ndarray | None = None,
) -> DistillationLoss:
    """The objective of `losses/oracle.py` and its analytic gradient, computed on the device.

    loss = sum_n weight_n * (ce_weight * ce_n + kd_weight * kd_n). The arrays are not changed.

    Args:
        logits_NV: float, the student's, finite.
        target_ids_N: int, 0 <= id < V.
        teacher_ids_NK: int, the teacher's ids, different in a row; -1 pads.
        teacher_logp_NK: float, their log-probabilities at `options.temperature`.
        teacher_tail_logp_N: float, log of the teacher's mass outside these ids.
        options: divergence, support, temperature and weights.
        weight_N: float; None: 1 / N, so that the loss is a mean.

    Raises UserError: options without a meaning, shapes that do not fit together, an id out of range or given twice.
    """
    check_objective(checked(options, "objective"))
    arrays = [np.array(logits_NV, np.float32), np.asarray(target_ids_N, np.int32)]
    count = len(arrays[1])
    arrays.append(np.full(count, 1 / max(count, 1), np.float32) if weight_N is None else np.float32(weight_N))
    arrays += [np.asarray(teacher_ids_NK, np.int32), np.float32(teacher_logp_NK), np.float32(teacher_tail_logp_N)]
    _check_loss_arrays(*arrays)
    runtime.ensure_setup()
    operator = _loss_operator(*schema.to_plain(options).values())
    ce_N, kd_N, _, gradient_NV = (output.asnumpy() for output in operator(*map(Tensor, arrays)))
    loss = float((arrays[2] * (ce_weight(options) * ce_N + options.kd_weight * kd_N)).sum())
    return DistillationLoss(loss, ce_N, kd_N, gradient_NV)


def run(config: Config) -> Path:
    """Run every stage of a curriculum (from `compose`) that is not finished, write its report, return its directory.

    With `runtime.workers` above 1 the stages run in that many processes. Raises UserError for a `config` that cannot
    run or a run directory of something else, JobFailed when one of several processes failed.
    """
    if config.sweep is not None:
        raise UserError("sweep: many runs need `python tools/train.py --multirun`; leave `sweep` out")
    if config.runtime.workers == 1 or runtime.world_size() > 1:
        return runner.run(config)
    launch.spawn(config, [])
    return Path(config.run_dir)


def _known(name: str, names: Iterable[str], key: str) -> str:
    """`name`, which must be one of `names`. Raises UserError with the nearest one."""
    if name not in names:
        raise UserError(f"{key}: {name!r} is unknown{schema.nearest(name, names)}")
    return name


def _float32(parameter) -> np.ndarray:
    return np.ascontiguousarray(parameter.asnumpy(), np.float32)


@functools.lru_cache(maxsize=16)
def _loss_operator(*options) -> nn.Cell:
    """The operator of an objective, kept for its compiled graphs."""
    return row_operator(ObjectiveOptions(*options), with_teacher=True, gradient=True)


def _check_loss_arrays(logits_NV, target_ids_N, weight_N, ids_NK, logp_NK, tail_logp_N) -> None:
    """Raise UserError unless shapes fit and ids are in range: a fused operator reads memory at these ids."""
    if logits_NV.ndim != 2 or ids_NK.ndim != 2:
        raise UserError(f"distillation_loss: logits {logits_NV.shape} and teacher ids {ids_NK.shape} need two axes")
    count, vocab = logits_NV.shape
    lengths = {len(ids_NK), *(array.shape for array in (target_ids_N, weight_N, tail_logp_N))}
    if lengths != {count, (count,)} or logp_NK.shape != ids_NK.shape:
        shapes = [array.shape for array in (logits_NV, target_ids_N, weight_N, ids_NK, logp_NK, tail_logp_N)]
        raise UserError(f"distillation_loss: shapes {shapes} do not fit [N, V], [N], [N], [N, K], [N, K], [N]")
    if count and (target_ids_N.min() < 0 or target_ids_N.max() >= vocab):
        raise UserError(f"distillation_loss: target_ids_N: an id is outside the vocabulary of {vocab}")
    if ids_NK.size and (ids_NK.min() < -1 or ids_NK.max() >= vocab):
        raise UserError(f"distillation_loss: teacher_ids_NK: an id is outside the vocabulary of {vocab}, and not -1")
    sorted_NK = np.sort(ids_NK, axis=1)
    if ((np.diff(sorted_NK, axis=1) == 0) & (sorted_NK[:, 1:] >= 0)).any():
        raise UserError("distillation_loss: teacher_ids_NK: an id is given twice in a row")
