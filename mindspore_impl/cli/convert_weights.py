"""Convert weights between Hugging Face folders and checkpoints."""

import argparse
import dataclasses
import json
import re
import shutil
from pathlib import Path

from mindspore_impl import checkpoint, files
from mindspore_impl.cli.command import command, make_parser
from mindspore_impl.curriculum.resolve import open_weights, resolve_model_path
from mindspore_impl.errors import UserError
from mindspore_impl.model import gguf, hf_config, tensor_file, weights
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.model.weights import EMBEDDING, WeightSource
from mindspore_impl.text.tokenizer import Tokenizer, check_tokenizer

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclasses.dataclass(frozen=True)
class FolderFormat:
    """How a Hugging Face folder is written.

    dtype: fp32, fp16 or bf16; None for that of the source's config.json, else bf16. shard_size: such as 2GB.
    model_type: a key of hf_config.MODEL_TYPES; None to keep the source's config.json, else PanguEmbedded.
    """

    dtype: str | None = None
    shard_size: str = "5GB"
    model_type: str | None = None


@command
def main(arguments: list[str]) -> None:
    """Import, export, randomly initialise or describe weights."""
    parser = make_parser(
        "Convert weights between Hugging Face folders (config.json and safetensors in bf16, fp16 or fp32) and\n"
        "checkpoints (fp32), one tensor at a time. A stage can also start from such a folder: stages.NAME.init=DIR.",
        "python tools/convert_weights.py import DIR/openPangu-Embedded-1B outputs/pangu_1b",
        "python tools/convert_weights.py export outputs/quickstart/stages/09_distill_fast outputs/hf --dtype bf16",
        "python tools/convert_weights.py random pangu_1b outputs/rehearsal --shard-size 2GB",
        "python tools/convert_weights.py describe DIR/llama > conf/model/mine.yaml",
    )
    form = argparse.ArgumentParser(add_help=False)
    form.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), help="default: as in config.json, else bf16")
    form.add_argument("--shard-size", default="5GB", metavar="SIZE", help="largest file, e.g. 2GB (default 5GB)")
    form.add_argument("--model-type", choices=("PanguEmbedded", "llama"), help="llama: transformers knows it as it is")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="import | export | random | describe")
    verb = verbs.add_parser("import", help="Hugging Face folder or .gguf file -> checkpoint folder")
    verb.add_argument("source", type=Path, metavar="HF_DIR|GGUF")
    verb.add_argument("out", type=Path, metavar="OUT")
    verb = verbs.add_parser("export", help="checkpoint, or a run's stage folder -> Hugging Face folder", parents=[form])
    verb.add_argument("source", type=Path, metavar="CHECKPOINT")
    verb.add_argument("out", type=Path, metavar="HF_DIR")
    verb.add_argument("--config", type=Path, metavar="FILE", help="config.json of the model, if not found otherwise")
    verb = verbs.add_parser(
        "random", help="model of conf/model with initial weights -> Hugging Face folder", parents=[form]
    )
    verb.add_argument("model", metavar="MODEL", help="e.g. pangu_1b")
    verb.add_argument("out", type=Path, metavar="HF_DIR")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--vocab-size", type=int, help="instead of the model's own")
    verb = verbs.add_parser("describe", help="print the file for conf/model/ that these weights need")
    verb.add_argument("source", type=Path, metavar="HF_DIR")
    options = parser.parse_args(arguments)
    if options.verb == "import":
        print(import_weights(options.source, options.out))
    elif options.verb == "describe":
        print(describe(options.source))
    else:
        folder = FolderFormat(options.dtype, options.shard_size, options.model_type)
        if options.verb == "export":
            print(export_weights(options.source, options.out, folder, options.config))
        else:
            print(random_weights(options.model, options.out, options.seed, options.vocab_size, folder))


def import_weights(path: Path, out: Path) -> str:
    """Convert weights with a known model to a checkpoint folder `out`; return a line that says so.

    Raises UserError when the weights are damaged or their model is not known or supported, or `out` holds anything.
    """
    return write_checkpoint(_described(path), path, resolve_model_path(path).tokenizer, out, {})


def _described(path: Path) -> WeightSource:
    source = checkpoint.open_weights(path)
    if source.options is None:
        raise UserError(f"{path}: no {hf_config.CONFIG} says what model this is; name a Hugging Face folder")
    return source


def write_checkpoint(source: WeightSource, path: Path, tokenizer: Path | None, out: Path, position: dict) -> str:
    """Write `source`, whose options are known, as the checkpoint folder `out`; return a line that says so.

    Args:
        source: the weights.
        path: where they came from.
        tokenizer: its file, copied beside the checkpoint; None for none.
        out: a new or empty folder.
        position: further keys of the checkpoint's position.

    Raises UserError when `out` holds anything.
    """
    if out.is_file() or out.is_dir() and any(not entry.name.endswith(".tmp") for entry in out.iterdir()):
        raise UserError(f"{out}: exists and is not an empty folder; choose another name")

    def write(file: Path) -> None:
        tensor_file.write_file(file, source.shapes, "F32", weights.iter_tensors(source, "import"))

    described = source.config or hf_config.config_of(source.options, "llama", {})
    position = {"step": 0, "source": source.path.name, **position}
    content = gguf.tokenizer_json(path) if gguf.is_gguf(path) else None
    made_with = source.tokenizer_sha256 or (tokenizer and files.sha256_file(tokenizer))
    if content is not None:
        made_with = files.sha256_bytes(files.json_bytes(content))
    checkpoint.save(out, 0, write, {}, position, keep=1, config=described, tokenizer_sha256=made_with)
    if content is not None:
        files.write_json(out / "tokenizer.json", content)
    elif tokenizer is not None:
        shutil.copyfile(tokenizer, out / tokenizer.name)
    return f"{out}: {_size(source.options)}, fp32; a stage starts from it with stages.NAME.init={out}"


def export_weights(path: Path, out: Path, form: FolderFormat, config_file: Path | None = None) -> str:
    """Convert a checkpoint (or any weights) to a Hugging Face folder `out`; return a line that says so.

    The model is described by `config_file`, the config.json beside the weights, or their run. Raises UserError when
    none does, the weights do not fit it, a value does not fit the dtype, or `out` holds anything.
    """
    return _write(*open_described(path, config_file, "give one with --config FILE"), out, form)


def open_described(
    path: Path, config_file: Path | None, advice: str
) -> tuple[WeightSource, dict[str, int], Path | None]:
    """Open the weights at `path`; return them, token ids for a config.json that lacks them, and the tokenizer's file.

    Raises UserError, with `advice`, when nothing describes their model.
    """
    found = resolve_model_path(path)
    source = open_weights(found.weights, found.which)
    if source.tokenizer_sha256 and found.tokenizer:
        sha256 = files.sha256_file(found.tokenizer)
        check_tokenizer(source.tokenizer_sha256, sha256, source.path, f"restore {found.tokenizer}")
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


def random_weights(model: str, out: Path, seed: int, vocab_size: int | None, form: FolderFormat) -> str:
    """Write the initial weights of a model of conf/model as a Hugging Face folder, to rehearse with.

    Args:
        model: a file of conf/model, such as pangu_1b.
        out: a new or empty folder.
        seed: of the weights.
        vocab_size: instead of the model's own.
        form: how the folder is written.
    """
    from mindspore_impl.curriculum.configuration import compose

    options = compose([f"model@models.student={model}"]).models["student"]
    if vocab_size is not None:
        options = dataclasses.replace(options, vocab_size=vocab_size)
    if not options.vocab_size:
        raise UserError(f"conf/model/{model}.yaml leaves vocab_size to the tokenizer; give --vocab-size")
    return _write(weights.random_source(options, seed), {}, None, out, form)


def describe(path: Path) -> str:
    """The text of a conf/model/ file for weights with a config.json."""
    options = _described(path).options
    lines = [
        f"# {path.name}: {_size(options)}; NAME is this file's name:",
        f"#   python tools/train.py model@models.student=NAME stages.sft_reasoning.init={path} tokenizer.path=FILE",
    ]
    for key, value in dataclasses.asdict(options).items():
        lines.append(f"{key}: {value if type(value) in (int, float) else json.dumps(value)}")
    return "\n".join(lines)


def _write(
    source: WeightSource, token_ids: dict[str, int], tokenizer: Path | None, out: Path, form: FolderFormat
) -> str:
    """Write the Hugging Face folder `out`; token_ids: for its config.json, where the source has none."""
    described, options = source.config, source.options
    dtype = form.dtype or weights.stored_dtype(described) or "bf16"
    if described is None or form.model_type is not None:
        kept = {key: value for key, value in (described or {}).items() if key.endswith("_token_id")}
        described = hf_config.config_of(options, form.model_type or "PanguEmbedded", kept | token_ids)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB)", form.shard_size.strip(), re.IGNORECASE)
    if match is None or (shard_bytes := int(float(match[1]) * _UNITS[match[2].upper()])) == 0:
        raise UserError(f"--shard-size: {form.shard_size!r} is not a size; write it like 2GB or 500MB")

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
