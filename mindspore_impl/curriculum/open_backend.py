"""What benchmarks are run on, by what a person calls it: as `open_model.py`, for many prompts at a time."""

from pathlib import Path

from mindspore_impl import files, runtime
from mindspore_impl.curriculum.plan import file_hash
from mindspore_impl.curriculum.resolve import load_model, named, open_tokenizer, open_weights
from mindspore_impl.evaluation.backend import Backend, of_decoder, of_model


def open_backend(path: Path, tokenizer_path: Path | None, template: str | None, batch_size: int) -> Backend:
    """The model that `path` stands for, with its tokenizer. Raises UserError as `open_model.open_conversation` does."""
    found = named(path)
    tokenizer = open_tokenizer(path, found, tokenizer_path, template)
    runtime.setup(runtime.RuntimeOptions())
    if found.is_package:
        from mindspore_impl.export.session import open_session

        session = open_session(found.weights)
        session.package.check_tokenizer(tokenizer)
        return of_decoder(session, tokenizer, files.sha256_file(found.weights / "manifest.json"))
    from mindspore_impl.model.weights import identity

    sha256 = identity(open_weights(found.weights, found.which), file_hash)
    return of_model(load_model(found, tokenizer.vocab_size), tokenizer, batch_size, sha256)
