"""Configurations for tests: Hydra composes each base once; `a.b=value` overrides change a copy of its plain data."""

import copy
import functools
import math
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mindspore_impl import config, files
from mindspore_impl.curriculum import configuration, plugins
from mindspore_impl.curriculum.plan import make_plan
from mindspore_impl.curriculum.stages import Shared, inputs
from mindspore_impl.curriculum.stages.context import RunContext, prepare_tokenizer
from mindspore_impl.errors import UserError
from mindspore_impl.model.pangu import parameter_shapes
from mindspore_impl.model.tensor_file import encode_header
from mindspore_impl.text.tokenizer import Tokenizer

# Other keys of conf/ are interpolated from these.
SOURCES = ("name", "data.train", "data.validation", "data.test", "plugins")


@functools.cache
def _base(*overrides: str) -> dict:
    plain, folders = config.compose(list(overrides))
    plugins.load(plain.get("plugins") or [], folders)
    return plain


@functools.cache
def _value(text: str):
    return OverridesParser.create().parse_override(text).value()


def _merged(old, new):
    """Hydra merges a mapping into the one that is there."""
    both = isinstance(old, dict) and isinstance(new, dict)
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}} if both else new


def _is_plain(text: str) -> bool:
    key = text.partition("=")[0]
    return key.replace(".", "").isidentifier() and key not in SOURCES and not (config.conf_folder() / key).is_dir()


def compose_quickly(*overrides: str) -> configuration.Config:
    """What `configuration.compose` makes of the overrides, in a hundredth of its time once their base is known."""
    plain = copy.deepcopy(_base(*(text for text in overrides if not _is_plain(text))))
    for text in filter(_is_plain, overrides):
        entry, (*path, last) = plain, text.partition("=")[0].split(".")
        for word in path:
            entry[word] = entry.get(word) or {}
            entry = entry[word]
        entry[last] = _merged(entry.get(last), copy.deepcopy(_value(text)))
    return configuration.validate(plain)


def paper_files(folder: Path, monkeypatch) -> list[str]:
    """Overrides of experiment=paper_1b that name files: of its models, headers alone, and the rest is not read."""
    for name in ("student", "teacher"):
        shapes = parameter_shapes(compose_quickly("experiment=paper_1b", "data.train=a", "data.test=b").models[name])
        sizes = {tensor: 2 * math.prod(shape) for tensor, shape in shapes.items()}
        with open(folder / f"{name}.safetensors", "wb") as file:
            file.write(encode_header([(tensor, "BF16", shape, sizes[tensor]) for tensor, shape in shapes.items()]))
            file.truncate(file.tell() + sum(sizes.values()))
    (folder / "tokenizer.model").write_bytes(b"x")
    for part in ("train_reasoning", "train_fast", "test_reasoning", "test_fast"):
        (folder / f"{part}.jsonl").write_text("{}\n")
    monkeypatch.setattr(inputs, "file_hash", str)
    monkeypatch.setattr(Tokenizer, "load", lambda *_: None)
    monkeypatch.setattr(Shared, "vocabulary", lambda shared: 153376)  # as in conf/model
    given = [f"data.train={folder}/train", f"data.test={folder}/test", f"tokenizer.path={folder}/tokenizer.model"]
    given.append(f"stages.sft_reasoning.init={folder}/student.safetensors")
    return [*given, f"stages.capture_fast.teacher={folder}/teacher.safetensors"]


def stage_file(run: Path, name: str) -> dict:
    """The stage.json of the stage `name` in a run directory."""
    (path,) = run.glob(f"stages/[0-9][0-9]_{name}/stage.json")
    return files.read_json(path)


def plan(*overrides: str) -> dict:
    """{stage name: PlannedStage} of what `compose_quickly` makes."""
    return {planned.name: planned for planned in make_plan(compose_quickly(*overrides))}


def refusal(*overrides: str) -> str:
    """The message of the UserError that planning raises."""
    with pytest.raises(UserError) as caught:
        plan(*overrides)
    return str(caught.value)


def changed(*overrides: str, base: tuple[str, ...] = ()) -> set[str]:
    """The stages whose fingerprint the overrides change."""
    before, after = plan(*base), plan(*base, *overrides)
    return {name for name in before if before[name].fingerprint != after[name].fingerprint}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """The tokenizer of the runs in test_runner.py."""
    from tests.curriculum.test_runner import SMALL

    return prepare_tokenizer(RunContext(compose_quickly(*SMALL), tmp_path_factory.mktemp("tokenizer"), {}))
