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
from mindspore_impl.text.tokenizer import Tokenizer, check_tokenizer

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


def check_weights(source, folder: Path, options: ModelOptions, key: str, tokenizer: Tokenizer | None) -> None:
    """Refuse weights of another model, by config.json and the shapes in their files, or of another tokenizer.

    Args:
        source: WeightSource of the weights.
        folder: the path that names them.
        options: the model that they are loaded into; a vocabulary of 0 fits any.
        key: its entry in the configuration, such as models.student.
        tokenizer: the run's; None where it has yet to train its own.

    Raises:
        UserError: names the differing keys, or the hashes of both tokenizers.
    """
    from mindspore_impl.model.hf_config import check_same
    from mindspore_impl.model.weights import EMBEDDING, fit

    if source.options is not None:
        check_same(source.options, options, str(source.path), key)
    embedding = source.shapes.get(EMBEDDING) or (options.vocab_size,)
    fit(source, dataclasses.replace(options, vocab_size=options.vocab_size or embedding[0]), f"set {key} to match them")
    check_weights_tokenizer(source, folder, tokenizer)


def check_weights_tokenizer(source, folder: Path, tokenizer: Tokenizer | None) -> None:
    """Refuse weights (a WeightSource, named by `folder`) that were trained with another tokenizer.

    Their own note counts, else one of the tokenizer files beside them; of a GGUF file the pieces in it. tokenizer: None
    where it is yet to be trained.
    """
    sha256, advice = tokenizer and tokenizer.sha256, "name their own in tokenizer.path (--tokenizer of a command)"
    if source.pieces is not None and tokenizer is not None:
        ours = tokenizer.pieces(range(tokenizer.vocab_size))
        made_with, sha256 = (files.sha256_json(pieces[: len(ours)]) for pieces in (source.pieces(), ours))
        check_tokenizer(made_with, sha256, f"{source.path}: the list of pieces", advice)
        return
    made_with, what = source.tokenizer_sha256, source.path
    beside = {file_hash(path): path for name in TOKENIZERS if (path := folder / name).is_file()}
    if made_with is None and beside:
        made_with = sha256 if sha256 in beside else next(iter(beside))
        what, sha256 = beside[made_with], sha256 or "yet to be known: the run trains its own"
        advice = f"set tokenizer.path={what}, or remove that file if these weights do belong to the run's tokenizer"
    if sha256 is not None:
        check_tokenizer(made_with, sha256, what, advice)


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
