"""What a stage reads from elsewhere: references to stages and paths, and the content hashes of files."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.schema import nearest

TOKENIZERS = ("tokenizer.json", "tokenizer.model")  # names of a tokenizer's file beside weights


@dataclass(frozen=True)
class Input:
    """One named input of a stage.

    role: such as "init"; reference: the name of a stage, or a path; artifact: what that must provide ("weights",
    "store", "rollouts", "records"); key: where the configuration says it; model: the entry of `models` that weights
    are of, None for the stage's own.
    """

    role: str
    reference: str
    artifact: str
    key: str
    model: str | None = None


def is_path(reference: str) -> bool:
    """A reference with a separator, or one that ends like a weights or a record file, is a path; else a stage name."""
    return "/" in reference or reference.endswith((".safetensors", ".jsonl"))


def absolute(reference: str) -> str:
    """A path from the root, whatever the working directory; the name of a stage as it is."""
    return os.path.abspath(reference) if is_path(reference) else reference


def reference_problem(given: Input, reader: str, stages: Mapping[str, Any], order: list[str]) -> str | None:
    """Why an input of the stage `reader` cannot be resolved; None when it can.

    stages: every stage that is defined (each has `provides`, its artifacts); order: the names of those that run.
    """
    name, key = given.reference, given.key
    if is_path(name):
        return None if Path(name).exists() else f"{key}: {name}: no such file or folder"
    fitting = [other for other in order if given.artifact in stages[other].provides and other != reader]
    if name not in stages:
        if Path(name).exists():
            return f"{key}: no stage is named {name!r}; for the path, write ./{name}"
        return f"{key}: no stage is named {name!r}{nearest(name, fitting)}"
    if given.artifact not in stages[name].provides:
        kind = stages[name].kind
        return f"{key}: {name!r} is a stage of kind {kind!r} and provides no {given.artifact}{nearest(name, fitting)}"
    if name not in order:
        return f"{key}: {name!r} is defined but not listed in order; add it before {reader!r}"
    return None


def check_weights(source, folder: Path, options: ModelOptions, key: str, tokenizer: Path | None) -> None:
    """Refuse weights of another model, by the config.json and the shapes in their files, or beside another tokenizer.

    Args:
        source: WeightSource of the weights.
        folder: the path that names them.
        options: the model that they are loaded into; a vocabulary of 0 fits any.
        key: its entry in the configuration, such as models.student.
        tokenizer: the run's tokenizer file; None where the run trains its own.

    Raises:
        UserError: names the differing keys, or the tokenizer file.
    """
    from mindspore_impl.model.hf_config import check_same
    from mindspore_impl.model.weights import EMBEDDING, fit

    if source.options is not None:
        check_same(source.options, options, str(source.path), key)
    embedding = source.shapes.get(EMBEDDING) or (options.vocab_size,)
    fit(source, dataclasses.replace(options, vocab_size=options.vocab_size or embedding[0]), f"set {key} to match them")
    beside = [path for name in TOKENIZERS if (path := folder / name).is_file()]
    digest = None if tokenizer is None or not beside else files.sha256_file(tokenizer)
    if beside and all(files.sha256_file(path) != digest for path in beside):
        raise UserError(
            f"{beside[0]}: it is not the run's tokenizer, so every id would mean something else; set "
            f"tokenizer.path={beside[0]}, or remove that file if these weights do belong to the run's tokenizer"
        )


def path_hash(path: str | Path) -> str:
    """SHA-256 of a file; of the index and shards of a Hugging Face folder; of the weight files in another folder."""
    from mindspore_impl.model.weights import hf_files, is_hf_folder

    target = Path(path)
    if target.is_file():
        return file_hash(target)
    if is_hf_folder(target):
        return files.sha256_json({found.name: file_hash(found) for found in hf_files(target)})
    found = sorted(target.rglob("*.safetensors"))
    return files.sha256_json({str(f.relative_to(target)): file_hash(f) for f in found})


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read again only when its size or time changes."""
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return _hash_of_state(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _hash_of_state(path: Path, size: int, mtime_ns: int) -> str:
    return files.sha256_file(path)
