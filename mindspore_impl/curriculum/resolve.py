"""Resolve a user-supplied model path: a run or its stage, a checkpoint, a Hugging Face folder, an export package."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.curriculum.stages.inputs import TOKENIZERS, check_weights_tokenizer, file_hash, is_path
from mindspore_impl.errors import UserError
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.model.weights import WeightSource
from mindspore_impl.schema import build, nearest


@dataclass(frozen=True)
class ResolvedModel:
    """A model found at a path.

    weights: the folder or file they are read from; options: of the model, if known without reading weights; which: the
    checkpoint to take, last or best; tokenizer: the file beside the weights or of the run, if any; template: the run's.
    """

    weights: Path
    options: ModelOptions | None = None
    which: str = "last"
    tokenizer: Path | None = None
    template: str | None = None
    is_package: bool = False  # an export package, which holds graphs instead of a model's weights


def resolve_model_path(path: str | Path) -> ResolvedModel:
    """Resolve `path` to a model without reading weights. Raises UserError when nothing there holds a model."""
    from mindspore_impl.export.package import is_package, named_template
    from mindspore_impl.model.weights import is_hf_folder

    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; name a checkpoint, a run or its stage, or an export package")
    package = is_package(path) and any(path.glob("*.mindir"))  # a checkpoint has a manifest and weights too
    if not package and not (path.is_dir() and is_hf_folder(path)) and (run := _run_of(path)):
        return _of_run(path, run)
    folder = path if path.is_dir() else path.parent
    tokenizer = next((folder / name for name in TOKENIZERS if (folder / name).is_file()), None)
    return ResolvedModel(
        path, tokenizer=tokenizer, template=named_template(path) if package else None, is_package=package
    )


def open_tokenizer(path: Path, found: ResolvedModel, tokenizer_path: Path | None, template: str | None):
    """Load the tokenizer at `tokenizer_path`, or the one found with the model. Raises UserError without any."""
    from mindspore_impl.text.tokenizer import Tokenizer

    if tokenizer_path is None and found.tokenizer is None:
        raise UserError(f"{path}: no {' or '.join(TOKENIZERS)} lies beside these weights; name its file (--tokenizer)")
    return Tokenizer.load(tokenizer_path or found.tokenizer, template or found.template)


def open_weights(path: str | Path, which: str = "last", hashed: bool = True) -> WeightSource:
    """Like `checkpoint.open_weights`; for LoRA adapters, also find their base weights through the run around them."""
    from mindspore_impl import checkpoint

    return checkpoint.open_weights(path, which, lambda: _base_of(Path(path)), hashed)


def artifact_hash(path: str | Path, weights: WeightSource | None = None) -> str:
    """SHA-256 of what is read of an artifact at `path`: a file, or all files of a folder.

    Of weights in a folder, it is that of those which were opened there, with what their files say of model and
    tokenizer. Raises UserError for what is damaged.
    """
    from mindspore_impl.model.weights import identity

    path = Path(path)
    if path.is_file():
        return file_hash(path)
    if weights is not None:
        model = weights.options and dataclasses.asdict(weights.options)
        beside = [file_hash(path / name) for name in TOKENIZERS if (path / name).is_file()]
        return files.sha256_json([identity(weights, file_hash), model, weights.tokenizer_sha256, beside])
    names = [found.relative_to(path) for found in sorted(path.rglob("*")) if found.is_file()]
    names = [name for name in names if not any(part.startswith(".") for part in name.parts)]  # left by a kill
    return files.sha256_json({str(name): file_hash(path / name) for name in names})


def _base_of(path: Path) -> WeightSource:
    """The weights below the adapters in `path`, a stage of a run or a checkpoint of one, their hash known."""
    from mindspore_impl.model.weights import identity

    run = _run_of(path)
    init = run and _stage_around(path, run)[1]["inputs"].get("init")
    if not init:
        raise UserError(f"{path}: holds LoRA adapters alone; name the stage inside its run, which knows their base")
    if is_path(init):
        base = open_weights(Path(init))
    else:
        folders = [folder for folder in _trained_in(run) if folder.partition("_")[2] == init]
        if not folders:
            raise UserError(f"{path}: its adapters were trained on stage {init!r}, which is not in {run} any more")
        base = open_weights(run / "stages" / folders[0], _selects(_note(run, folders[0])))
    return dataclasses.replace(base, sha256=identity(base, file_hash))


def load_model(found: ResolvedModel, tokenizer=None) -> tuple:
    """Build a model for inference and load its weights; -> it and the WeightSource.

    Raises UserError for unknown or unfit sizes, and for weights of another tokenizer than `tokenizer`, if given.
    """
    from mindspore_impl.model.pangu import PanguForCausalLM
    from mindspore_impl.model.weights import load_into

    source, tokenizer_size = open_weights(found.weights, found.which), 0
    if tokenizer is not None:
        tokenizer_size = tokenizer.vocab_size
        check_weights_tokenizer(source, found.weights, tokenizer)
    options = source.options or found.options
    if options is None:
        raise UserError(
            f"{found.weights}: these weights do not say what model they are of; name a stage of a run, a checkpoint "
            "inside one, or a Hugging Face folder (with config.json)"
        )
    options = dataclasses.replace(options, vocab_size=options.vocab_size or tokenizer_size)
    if options.vocab_size < tokenizer_size:
        raise UserError(
            f"{found.weights}: the model's vocabulary of {options.vocab_size} is smaller than the tokenizer's "
            f"{tokenizer_size}; use the tokenizer that the model was made for"
        )
    model = PanguForCausalLM(options, initialise=False)
    load_into(model, source, "load" if sys.stderr.isatty() else None)
    model.set_train(False)
    return model, source


def _run_of(path: Path) -> Path | None:
    """The run directory at or above `path`."""
    above = (path, *path.resolve().parents)
    return next((each for each in above if (each / "config.yaml").is_file() and (each / "stages").is_dir()), None)


def _of_run(path: Path, run: Path) -> ResolvedModel:
    from mindspore_impl.report.run_files import read_config

    config = read_config(run)[0]
    folder, note = _stage_around(path, run)
    name, tokenizer = note["model"], config.get("tokenizer") or {}
    if name not in (config.get("models") or {}):
        raise UserError(f"{run / 'config.yaml'}: models.{name}: the model of stage {note['name']!r} is missing")
    weights = path if folder in path.resolve().parts else run / "stages" / folder
    return ResolvedModel(
        weights,
        build(ModelOptions, config["models"][name], f"models.{name}"),
        _selects(note),
        Path(tokenizer.get("path") or run / "tokenizer" / "tokenizer.model"),
        tokenizer.get("template"),
    )


def _trained_in(run: Path) -> list[str]:
    """The folders of the stages that have weights, in order."""
    return [folder.name for folder in sorted((run / "stages").iterdir()) if (folder / "checkpoints").is_dir()]


def _stage_around(path: Path, run: Path) -> tuple[str, dict]:
    """The stage in which `path` lies, by folder and stage.json; for the run itself the last of `order` with weights."""
    from mindspore_impl.report.run_files import read_config

    trained = _trained_in(run)
    if not trained:
        raise UserError(f"{run}: no stage of this run has weights yet; run its curriculum first")
    inside = path.resolve().relative_to(run.resolve()).parts
    order = read_config(run)[0].get("order") or []
    ordered = [folder for name in order for folder in trained if folder.partition("_")[2] == name]
    folder = inside[1] if len(inside) > 1 else (ordered or trained)[-1]
    if folder not in trained:
        raise UserError(f"{path}: this stage of the run has no weights{nearest(folder, trained)}")
    return folder, _note(run, folder)


def _note(run: Path, folder: str) -> dict:
    return files.read_json(run / "stages" / folder / "stage.json")


def _selects(note: dict) -> str:
    """Which of its checkpoints a stage hands on: last or best."""
    return (note["options"].get("train") or {}).get("select", "last")
