"""A change of any byte that a finished run was made of, or left, is never met with a result that it does not fit.

The stages are written by hand and read through the program's own readers: what each makes is a hash of what it read.
"""

import dataclasses
import functools
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mindspore_impl import checkpoint, files
from mindspore_impl.curriculum import plugins, runner
from mindspore_impl.curriculum.configuration import Config
from mindspore_impl.curriculum.stages import KINDS, Stage
from mindspore_impl.data.options import DataOptions, FileSet
from mindspore_impl.data.rollouts import Rollout, write_rollouts
from mindspore_impl.data.teacher_store import StoreHeader, StoreReader
from mindspore_impl.data.teacher_store_writer import StoreWriter
from mindspore_impl.errors import UserError
from mindspore_impl.model import hf_config, weights
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.schema import option
from mindspore_impl.text.options import TokenizerOptions
from mindspore_impl.text.records import Message, record_to_json
from mindspore_impl.text.tokenizer import train_tokenizer
from tests.curriculum.conftest import stage_file

PLUGIN, HELPER = "identity_plugin", "identity_helper"
ROLES = {"init": "weights", "store": "store", "rollouts": "rollouts"}
IDS, SUPERVISED = np.arange(1, 5, dtype=np.int32), np.array([0, 0, 1, 1], bool)
TINY = ModelOptions(hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
                    num_key_value_heads=1, vocab_size=8)  # fmt: skip


@dataclass(kw_only=True)
class Digest(Stage):
    """Makes one of everything from a hash of everything it reads."""

    kind: Literal["digest"] = "digest"
    init: str | None = option(None, artifact="weights")
    store: str | None = option(None, artifact="store")
    rollouts: str | None = option(None, artifact="rollouts")

    provides: ClassVar[dict[str, str]] = {"weights": "checkpoints", "store": "store", "rollouts": "rollouts.jsonl"}
    outputs: ClassVar[tuple[str, ...]] = ("checkpoints/LATEST", "store/manifest.json", "rollouts.jsonl")

    def data_sets(self, key, shared):
        return [(f"{key}.set", "words")]

    def model_name(self, shared):
        return ""

    def run(self, context, planned, folder):
        tokenizer = context.tokenizer
        read = [tokenizer.sha256, list(map(record_to_json, context.records("words"))), sys.modules[PLUGIN].VALUE]
        if self.init:
            source = context.load(self.init, "weights")
            read += [{name: source.read(name).tolist() for name in source.shapes}, repr(source.options)]
        if self.store:
            reader = StoreReader(context.load(self.store, "store"), tokenizer.sha256)
            read += [dataclasses.asdict(reader.header), *(a.tolist() for a in reader.lookup(IDS, SUPERVISED))]
        if self.rollouts:
            read.append([dataclasses.asdict(rollout) for rollout in context.load(self.rollouts, "rollouts")])
        digest = files.sha256_json(read)
        make(folder, digest, tokenizer)
        return {"digest": digest}


def make(folder: Path, digest: str, tokenizer) -> None:
    """Two checkpoints, a store and rollouts, each a function of `digest`."""
    shutil.rmtree(folder / "store", ignore_errors=True)
    for step in (1, 2):
        arrays = {"w": np.frombuffer(bytes.fromhex(digest), np.uint8).astype(np.float32) * step}
        checkpoint.save(folder / "checkpoints", step, arrays, {"m": arrays["w"]}, {"step": step}, 2,
                        tokenizer_sha256=tokenizer.sha256)  # fmt: skip
    p = np.float32(0.1 + 0.8 * int(digest[:4], 16) / 16**4)
    writer = StoreWriter(folder / "store", StoreHeader(digest, tokenizer.sha256, tokenizer.vocab_size, 1, 1.0, "top_k"))
    writer.add(IDS, SUPERVISED, np.full((2, 1), 5), np.full((2, 1), np.log(p)), np.full(2, np.log1p(-p)))
    writer.close()
    answer = (Message("user", "what"),), "fast", None, None, f"answer {digest[:9]}", "stop"
    write_rollouts(folder / "rollouts.jsonl", [Rollout("r", *answer)])


@pytest.fixture(scope="module")
def outside(tmp_path_factory, ms_runtime):
    """A folder with what a curriculum can name by a path, and what makes running cheap."""
    folder = tmp_path_factory.mktemp("once") / "outside"
    folder.mkdir()
    rows = [{"prompt": f"say {word} {n}", "answer": word * n} for n in (1, 2) for word in ("be", "do", "go")]
    files.write_jsonl(folder / "words.jsonl", rows)
    texts = [text for row in rows for text in row.values()]
    tokenizer = train_tokenizer(texts, folder / "tokenizer.model", 50)
    make(folder / "made", files.sha256_json("outside"), tokenizer)
    save_file({"w": np.arange(3, dtype=np.float32)}, folder / "plain.safetensors")
    (folder / "hf").mkdir()
    weights.write_hf(folder / "hf", weights.random_source(TINY, 0), hf_config.config_of(TINY, "llama", {}), "fp32", 400)
    shutil.copy(folder / "tokenizer.model", folder / "hf")
    (folder / f"{PLUGIN}.py").write_text(f"from {HELPER} import VALUE\n")
    (folder / f"{HELPER}.py").write_text("VALUE = 12\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, "digest", Digest)
        patch.setattr(runner, "_write_report", lambda run_dir: None)
        patch.setattr("mindspore_impl.report.run_report.current_commit", lambda: "none")
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "dont_write_bytecode", True)
        yield folder


PATHS = {"init": ("made", "plain.safetensors", "hf"), "store": ("made/store",), "rollouts": ("made/rollouts.jsonl",)}


@st.composite
def curricula(draw):
    """(whether the tokenizer is trained, per stage {role: the number of an earlier stage, a path, or None})."""
    trained, stages = draw(st.booleans()), []
    for number in range(draw(st.integers(1, 3))):
        choices = {role: [None, *PATHS[role], *range(number)] for role in ROLES}
        if trained:  # what others made belongs to another tokenizer
            choices = {role: [None, *range(number)] for role in ROLES}
            choices["init"].append("plain.safetensors")
        stages.append({role: draw(st.sampled_from(choices[role])) for role in ROLES})
    return trained, stages


def run(folder: Path, outside: Path, trained: bool, stages: list[dict], last: bool = False) -> list[str]:
    """Run a curriculum in `folder` as a new process would; -> the digest of each stage. last: with one that reads all
    of the last stage's results."""
    sys.modules.pop(PLUGIN, None)
    sys.modules.pop(HELPER, None)
    plugins._loaded.pop(PLUGIN, None)
    sys.path[:] = [place for place in sys.path if Path(place).name != "outside"]
    plugins.load([PLUGIN], [outside])
    if last:
        stages = [*stages, dict.fromkeys(ROLES, len(stages) - 1)]
    named = lambda value: f"s{value}" if isinstance(value, int) else value and str(outside / value)  # noqa: E731
    made = {f"s{number}": Digest(**{role: named(v) for role, v in each.items()}) for number, each in enumerate(stages)}
    path = None if trained else str(outside / "tokenizer.model")
    words = FileSet(source="prompt_answer", path=str(outside / "words.jsonl"))
    config = Config(
        name="identity", run_dir=str(folder), order=list(made), stages=made, plugins=[PLUGIN],
        tokenizer=TokenizerOptions(path, vocab_size=50, train_on=["words"] if trained else []),
        data=DataOptions(sets={"words": words}),
    )  # fmt: skip
    runner.run(config)
    return [stage_file(folder, name)["metrics"]["digest"] for name in made]


@functools.cache
def finished(outside: Path, shape: str, last: bool = False) -> tuple[Path, list[str]]:
    """A finished run of a curriculum, to be copied, and its digests."""
    folder = outside.parent / f"run_{files.sha256_json([shape, last])[:12]}"
    return folder, run(folder, outside, *json.loads(shape), last)


def flip(path: Path, place: float, bit: int) -> None:
    """Change one bit of a file."""
    content, then = bytearray(path.read_bytes()), path.stat().st_mtime_ns + 10**9
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    os.utime(path, ns=(then, then))  # the clock of a file system may be slower than this test


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(curriculum=curricula(), data=st.data(), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_changed_byte_is_met_with_an_old_result(outside, tmp_path_factory, curriculum, data, place, bit):
    """The run then ends as one from scratch with the changed files, or is refused."""
    here, shape = tmp_path_factory.mktemp("example"), json.dumps(curriculum)
    shutil.copytree(finished(outside, shape)[0], here / "run")
    shutil.copytree(outside, here / "outside")
    names = [path.relative_to(here) for path in sorted(here.rglob("*")) if path.is_file() and path.stat().st_size]
    changed = data.draw(st.sampled_from(names))
    flip(here / changed, place, bit)
    try:
        found = run(here / "run", here / "outside", *curriculum, last=True)
    except UserError:
        return
    if changed.parts[0] == "run":
        assert found == finished(outside, shape, True)[1]
    else:
        assert found == run(here / "fresh", here / "outside", *curriculum, last=True)
