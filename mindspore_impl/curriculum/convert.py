"""Weights in and out: Hugging Face folder -> checkpoint, of all layers or some; checkpoint -> Hugging Face folder."""

import argparse
import dataclasses
import re
import shutil
from pathlib import Path

from mindspore_impl import checkpoint, config, files
from mindspore_impl.curriculum.resolve import named, open_weights
from mindspore_impl.errors import UserError
from mindspore_impl.model import gguf, hf_config, prune, tensor_file, weights
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.model.weights import EMBEDDING, WeightSource
from mindspore_impl.text.tokenizer import Tokenizer

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclasses.dataclass(frozen=True)
class Form:
    """How a Hugging Face folder is written. dtype: fp32, fp16, bf16, None for that of the source's config.json (bf16
    where it has none); shard_size: such as 2GB; model_type: a key of hf_config.MODEL_TYPES, None to keep the source's
    config.json (PanguEmbedded where it has none)."""

    dtype: str | None = None
    shard_size: str = "5GB"
    model_type: str | None = None


def add_form_options(parser: argparse.ArgumentParser) -> None:
    """The fields of a Form as options."""
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), help="default: as in config.json, else bf16")
    parser.add_argument("--shard-size", default="5GB", metavar="SIZE", help="largest file, e.g. 2GB (default 5GB)")
    parser.add_argument(
        "--model-type", choices=("PanguEmbedded", "llama"), help="llama: transformers knows it as it is"
    )


def add_prune_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of prune_depth as options."""
    parser.add_argument(
        "path", type=Path, metavar="MODEL", help="checkpoint, Hugging Face folder, .gguf file, or a stage of a run"
    )
    parser.add_argument("out", type=Path, metavar="OUT")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--keep", type=int, metavar="N", help="layers, evenly spaced, the first and the last among them (default: half)"
    )
    which.add_argument("--layers", metavar="0,2,4", help="these layers instead, counted from 0")


def import_weights(path: Path, out: Path) -> str:
    """Turn weights with a known model into a checkpoint folder `out`; return what was done, in a line.

    Raises UserError when the weights are damaged, of a model that is not supported or not described by a config.json,
    or when `out` holds anything.
    """
    source = checkpoint.open_weights(path)
    if source.options is None:
        raise UserError(f"{path}: no {hf_config.CONFIG} says what model this is; name a Hugging Face folder")
    return _import(source, path, named(path).tokenizer, out, {})


def prune_depth(path: Path, out: Path, layers: str | None = None, keep: int | None = None) -> str:
    """Write a checkpoint folder `out` that has some of the layers of the model at `path`; return what was done, in a
    line.

    `path` is anything that export_weights takes. layers: such as "0,2,4"; else `keep` of them, evenly spaced (None:
    half, rounded up). Raises UserError like import_weights, and when these layers are not there.
    """
    source, _, tokenizer = _described(path, None, "name a checkpoint, a Hugging Face folder or a stage of a run")
    total = source.options.num_hidden_layers
    if layers is None:
        kept = prune.evenly_spaced(total, -(-total // 2) if keep is None else keep)
    else:
        kept = prune.parse_layers(layers)
    done = _import(prune.keep_layers(source, kept), path, tokenizer, out, {"layers": list(kept)})
    return f"layers {','.join(map(str, kept))} of {total} -> {done}"


def _import(source: WeightSource, path: Path, tokenizer: Path | None, out: Path, position: dict) -> str:
    """Write a source of known options, which came from `path`, as the checkpoint folder `out`."""
    if out.is_file() or out.is_dir() and any(not entry.name.endswith(".tmp") for entry in out.iterdir()):
        raise UserError(f"{out}: is there already and not an empty folder; choose another name")

    def write(file: Path) -> None:
        tensor_file.write_file(file, source.shapes, "F32", weights.iter_tensors(source, "import"))

    described = source.config or hf_config.config_of(source.options, "llama", {})
    position = {"step": 0, "source": source.path.name, **position}
    content = gguf.tokenizer_json(path) if gguf.is_gguf(path) else None
    checkpoint.save(out, 0, write, {}, position, keep=1, config=described)
    if content is not None:
        files.write_json(out / "tokenizer.json", content)
    elif tokenizer is not None:
        shutil.copyfile(tokenizer, out / tokenizer.name)
    return f"{out}: {_size(source.options)}, fp32; a stage starts from it with stages.NAME.init={out}"


def export_weights(path: Path, out: Path, form: Form, config_file: Path | None = None) -> str:
    """Turn a checkpoint (or any weights) into a Hugging Face folder `out`; return what was done, in a line.

    What model they are of is read from `config_file` (a config.json), from the config.json beside them, or from the run
    that trained them; a tokenizer beside them, or of the run, is copied too. Raises UserError when none of these says
    it, the weights do not fit it, a value does not fit the dtype, or `out` holds anything.
    """
    return _write(*_described(path, config_file, "give one with --config FILE"), out, form)


def _described(path: Path, config_file: Path | None, advice: str) -> tuple[WeightSource, dict[str, int], Path | None]:
    """The weights that `path` stands for, of known options; token ids for a config.json where they bring none; and
    their tokenizer's file. Raises UserError, with `advice`, when nothing says what model they are of."""
    found = named(path)
    source = open_weights(found.weights, found.which)
    options, described, token_ids = source.options or found.options, source.config, {}
    if config_file is not None:
        options, described = hf_config.read_config(config_file)
    elif options is None:
        raise UserError(
            f"{path}: neither a {hf_config.CONFIG} beside it nor a run around it says what model this is; {advice}"
        )
    elif described is None and found.tokenizer is not None:
        token_ids = hf_config.token_ids(Tokenizer.load(found.tokenizer, found.template))
    if not options.vocab_size and EMBEDDING in source.shapes:
        options = dataclasses.replace(options, vocab_size=source.shapes[EMBEDDING][0])
    source = dataclasses.replace(weights.fit(source, options), options=options, config=described)
    return source, token_ids, found.tokenizer


def random_weights(model: str, out: Path, seed: int, vocab_size: int | None, form: Form) -> str:
    """Write the initial weights of a model of conf/model as a Hugging Face folder, to rehearse with."""
    options = config.compose([f"model@models.student={model}"]).models["student"]
    if vocab_size is not None:
        options = dataclasses.replace(options, vocab_size=vocab_size)
    if not options.vocab_size:
        raise UserError(f"conf/model/{model}.yaml leaves vocab_size to the tokenizer; give --vocab-size")
    return _write(weights.random_source(options, seed), {}, None, out, form)


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


def _write(source: WeightSource, token_ids: dict[str, int], tokenizer: Path | None, out: Path, form: Form) -> str:
    """Publish `out` from a source of known options; token_ids: for a config.json, where the source brings none."""
    described, options = source.config, source.options
    dtype = form.dtype or weights.stored_dtype(described) or "bf16"
    if described is None or form.model_type is not None:
        kept = {key: value for key, value in (described or {}).items() if key.endswith("_token_id")}
        described = hf_config.config_of(options, form.model_type or "PanguEmbedded", kept | token_ids)
    shard_bytes = _bytes_of(form.shard_size)

    def fill(folder: Path) -> None:
        weights.write_hf(folder, source, described, dtype, shard_bytes)
        if tokenizer is not None:
            shutil.copyfile(tokenizer, folder / tokenizer.name)

    files.new_folder(out, fill)
    return (
        f"{out}: {_size(options)}, {dtype}, model_type {described['model_type']}, "
        f"{tokenizer.name if tokenizer else 'no tokenizer (add its files)'}"
    )


def _size(options: ModelOptions) -> str:
    from mindspore_impl.model.pangu import parameter_count

    return f"{parameter_count(options):,} parameters"


def _bytes_of(text: str) -> int:
    """Bytes of a size such as 2GB or 500MB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB)", text.strip(), re.IGNORECASE)
    if match is None or (size := int(float(match[1]) * _UNITS[match[2].upper()])) == 0:
        raise UserError(f"--shard-size: {text!r} is no size; write it like 2GB or 500MB")
    return size
