"""Weights in and out of the house: Hugging Face folder -> checkpoint, checkpoint of a run -> Hugging Face folder."""

import dataclasses
import re
import shutil
from pathlib import Path

from mindspore_impl import checkpoint, config, files
from mindspore_impl.errors import UserError
from mindspore_impl.model import gguf, hf_config, tensor_file, weights
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.model.weights import EMBEDDING, WeightSource

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclasses.dataclass(frozen=True)
class Form:
    """How a Hugging Face folder is written. dtype: fp32, fp16, bf16, None for that of the source's config.json (bf16
    where it has none); shard_size: such as 2GB; model_type: a key of hf_config.MODEL_TYPES, None to keep the source's
    config.json (PanguEmbedded where it has none)."""

    dtype: str | None = None
    shard_size: str = "5GB"
    model_type: str | None = None


def import_weights(path: Path, out: Path) -> str:
    """Turn weights with a known model into a checkpoint folder `out`; return what was done, in a line.

    Raises UserError when the weights are damaged, of a model that is not supported or not described by a config.json,
    or when `out` holds anything.
    """
    source = checkpoint.open_weights(path)
    if source.options is None:
        raise UserError(f"{path}: no {hf_config.CONFIG} says what model this is; name a Hugging Face folder")
    if out.is_file() or out.is_dir() and any(not entry.name.endswith(".tmp") for entry in out.iterdir()):
        raise UserError(f"{out}: is there already and not an empty folder; choose another name")

    def write(file: Path) -> None:
        tensor_file.write_file(file, source.shapes, "F32", weights.iter_tensors(source, "import"))

    described = source.config or hf_config.config_of(source.options, "llama", {})
    position = {"step": 0, "source": source.path.name}
    checkpoint.save(out, 0, write, {}, position, keep=1, config=described)
    if gguf.is_gguf(path):
        gguf.write_tokenizer(path, out / "tokenizer.json")
    return f"{out}: {_size(source.options)}, fp32; a stage starts from it with stages.NAME.init={out}"


def export_weights(path: Path, out: Path, form: Form, config_file: Path | None = None) -> str:
    """Turn a checkpoint (or any weights) into a Hugging Face folder `out`; return what was done, in a line.

    What model they are of is read from `config_file` (a config.json), from the config.json beside them, or from the run
    that trained them; such a run's tokenizer is copied too. Raises UserError when none of these says it, the weights do
    not fit it, a value does not fit the dtype, or `out` holds anything.
    """
    source = checkpoint.open_weights(path, _handed_on(path))
    tokenizer = None
    if config_file is not None:
        options, described = hf_config.read_config(config_file)
    elif source.options is not None:
        options, described = source.options, source.config
    else:
        options, tokenizer = _trained(source)
        described = None
    source = weights.fit(source, options)
    return _write(source, options, described, tokenizer, out, form)


def random_weights(model: str, out: Path, seed: int, vocab_size: int | None, form: Form) -> str:
    """Write the initial weights of a model of conf/model as a Hugging Face folder, to rehearse with."""
    options = config.compose([f"model@models.student={model}"]).models["student"]
    if vocab_size is not None:
        options = dataclasses.replace(options, vocab_size=vocab_size)
    if not options.vocab_size:
        raise UserError(f"conf/model/{model}.yaml leaves vocab_size to the tokenizer; give --vocab-size")
    return _write(weights.random_source(options, seed), options, None, None, out, form)


def describe(path: Path) -> str:
    """The file for conf/model/ that weights with a config.json need."""
    options = checkpoint.open_weights(path).options
    if options is None:
        raise UserError(f"{path}: no {hf_config.CONFIG} says what model this is; name a Hugging Face folder")
    lines = [
        f"# {path.name}: {_size(options)}; NAME is this file's name:",
        f"#   python tools/train.py model@models.student=NAME stages.sft_reasoning.init={path} tokenizer.path=FILE",
    ]
    for key, value in dataclasses.asdict(options).items():
        lines.append(f"{key}: {'null' if value is None else str(value).lower() if isinstance(value, bool) else value}")
    return "\n".join(lines)


def _write(
    source: WeightSource, options: ModelOptions, described: dict | None, tokenizer, out: Path, form: Form
) -> str:
    """Publish `out` from a source that fits `options`; `described` is the config.json that is known."""
    dtype = form.dtype or weights.stored_dtype(described) or "bf16"
    if described is None or form.model_type is not None:
        ids = {key: described[key] for key in _TOKEN_IDS if key in described} if described else {}
        if tokenizer is not None:
            ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad")}
        described = hf_config.config_of(options, form.model_type or "PanguEmbedded", ids)
    shard_bytes = _bytes_of(form.shard_size)

    def fill(folder: Path) -> None:
        weights.write_hf(folder, source, described, dtype, shard_bytes)
        if tokenizer is not None:
            shutil.copyfile(tokenizer.path, folder / Path(tokenizer.path).name)

    files.new_folder(out, fill)
    note = "" if tokenizer is not None else "; the tokenizer's files are yours to add"
    return f"{out}: {_size(options)}, {dtype}, model_type {described['model_type']}{note}"


def _size(options: ModelOptions) -> str:
    from mindspore_impl.model.pangu import parameter_count

    return f"{parameter_count(options):,} parameters"


def _bytes_of(text: str) -> int:
    """Bytes of a size such as 2GB or 500MB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB)", text.strip(), re.IGNORECASE)
    if match is None or (size := int(float(match[1]) * _UNITS[match[2].upper()])) == 0:
        raise UserError(f"--shard-size: {text!r} is no size; write it like 2GB or 500MB")
    return size


def _stage_folder(path: Path) -> Path | None:
    """The stage folder that a stage's folder, checkpoints folder or checkpoint belongs to."""
    path = path.resolve()
    candidates = [path, *list(path.parents)[:3]]
    return next((folder for folder in candidates if (folder / "stage.json").is_file()), None)


def _handed_on(path: Path) -> str:
    """Which checkpoint the stage of this folder hands on: last or best."""
    stage = _stage_folder(path)
    try:
        return files.read_json(stage / "stage.json")["options"]["train"]["select"] if stage else "last"
    except (KeyError, TypeError):
        return "last"


def _trained(source: WeightSource) -> tuple[ModelOptions, object]:
    """The model and the tokenizer of a checkpoint that a run wrote, from the run's configuration."""
    from mindspore_impl.report.run_files import read_config
    from mindspore_impl.text.tokenizer import Tokenizer

    stage = _stage_folder(source.path)
    run = None if stage is None else stage.parent.parent
    if run is None or not (run / "config.yaml").is_file():
        raise UserError(
            f"{source.path}: neither a {hf_config.CONFIG} beside it nor a run around it says what model this is; give "
            "one with --config FILE"
        )
    settings, name = config.validate(read_config(run)[0]), files.read_json(stage / "stage.json").get("model")
    if name not in settings.models:
        raise UserError(
            f"{stage / 'stage.json'}: its model {name!r} is not in {run / 'config.yaml'}; give --config FILE"
        )
    options, path = settings.models[name], settings.tokenizer.path or run / "tokenizer" / "tokenizer.model"
    if not options.vocab_size and EMBEDDING in source.shapes:
        options = dataclasses.replace(options, vocab_size=source.shapes[EMBEDDING][0])
    return options, Tokenizer.load(path, settings.tokenizer.template)
