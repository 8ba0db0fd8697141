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
from mindspore_impl.curriculum.stages.inputs import check_weights_tokenizer
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
from mindspore_impl.text.tokenizer import Tokenizer, train_tokenizer
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
        patch.setattr(runner, "to_yaml", lambda config: f"name: {config.name}\n")
        patch.setattr("mindspore_impl.report.run_report.current_commit", lambda: "none")
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "dont_write_bytecode", True)
        yield folder


PATHS = {"init": ("made", "plain.safetensors", "hf"), "store": ("made/store",), "rollouts": ("made/rollouts.jsonl",)}

# Files of one kind, each as likely as another.
GROUPS = ("outside/*.jsonl", "outside/*.model", "outside/*.py", "outside/*.safetensors", "hf/*", "made/store/*",
          "made/checkpoints/LATEST", "made/checkpoints/*/*", "made/*.jsonl", "tokenizer/*",
          "0?_s?/stage.json", "0?_s?/*.jsonl", "0?_s?/store/*", "0?_s?/checkpoints/LATEST", "0?_s?/checkpoints/*/*",
          "run/*")  # fmt: skip


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


damage = st.tuples(st.sampled_from(GROUPS), st.floats(0, 1, exclude_max=True), st.integers(0, 7))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(curriculum=curricula(), damage=damage, data=st.data())
def test_no_changed_byte_is_met_with_an_old_result(outside, tmp_path_factory, curriculum, damage, data):
    """The run then ends as one from scratch with the changed files, or is refused."""
    group, place, bit = damage
    here, shape = tmp_path_factory.mktemp("example"), json.dumps(curriculum)
    shutil.copytree(finished(outside, shape)[0], here / "run")
    shutil.copytree(outside, here / "outside")
    names = [path.relative_to(here) for path in sorted(here.rglob("*")) if path.is_file() and path.stat().st_size]
    changed = data.draw(st.sampled_from([name for name in names if name.match(group)] or names))
    flip(here / changed, place, bit)
    try:
        found = run(here / "run", here / "outside", *curriculum, last=True)
    except UserError:
        return
    if changed.parts[0] == "run":
        assert found == finished(outside, shape, True)[1]
    else:
        assert found == run(here / "fresh", here / "outside", *curriculum, last=True)


@pytest.fixture
def own(outside, tmp_path):
    """The folder `outside` of a test's own, and another tokenizer of the same size."""
    shutil.copytree(outside, tmp_path / "outside")
    texts = ["say more of something else, please", "other words to learn"]
    return tmp_path / "outside", train_tokenizer(texts, tmp_path / "other.model", 50)


NOTHING = dict.fromkeys(ROLES)


@pytest.mark.parametrize(
    ("role", "path"),
    [("init", "made"), ("init", "made/checkpoints/step_00000002"), ("init", "hf"), ("store", "made/store")],
)
def test_what_was_made_with_another_tokenizer_of_the_same_size_is_refused(own, tmp_path, role, path):
    outside, other = own
    used = files.sha256_file(outside / "tokenizer.model")
    make(outside / "made", "ab" * 32, other)
    shutil.copy(other.path, outside / "hf" / "tokenizer.model")
    with pytest.raises(UserError) as caught:
        run(tmp_path / "run", outside, False, [NOTHING | {role: path}])
    assert used in str(caught.value) and other.sha256 in str(caught.value)


def test_a_swapped_tokenizer_of_a_run_is_refused(own, tmp_path):
    outside, other = own
    run(tmp_path / "run", outside, True, [NOTHING])
    trained = tmp_path / "run" / "tokenizer" / "tokenizer.model"
    before = files.sha256_file(trained)
    shutil.copy(other.path, trained)
    with pytest.raises(UserError) as caught:
        run(tmp_path / "run", outside, True, [NOTHING], last=True)
    assert before in str(caught.value) and other.sha256 in str(caught.value)
    shutil.rmtree(trained.parent)
    run(tmp_path / "run", outside, True, [NOTHING], last=True)
    assert files.sha256_file(trained) == before and not (tmp_path / "run" / "replaced").exists()


def test_another_tokenizer_of_the_same_recipe_runs_every_stage_again(own, tmp_path, monkeypatch):
    """Another version of SentencePiece may train another file."""
    outside, other = own
    before = run(tmp_path / "run", outside, True, [NOTHING])
    shutil.rmtree(tmp_path / "run" / "tokenizer")

    def train(texts, path, *options):
        shutil.copy(other.path, path)
        return Tokenizer.load(path)

    monkeypatch.setattr("mindspore_impl.curriculum.stages.context.train_tokenizer", train)
    (tmp_path / "run" / "tokenizer").mkdir()
    assert run(tmp_path / "run", outside, True, [NOTHING]) != before


def test_an_older_checkpoint_is_read_with_a_warning(own, tmp_path, capsys):
    outside, _ = own
    checkpoint.save(outside / "made" / "checkpoints", 3, {"w": np.ones(1, np.float32)}, {}, {}, 1)
    run(tmp_path / "run", outside, False, [NOTHING | {"init": "made"}])
    assert files.sha256_file(outside / "tokenizer.model") in capsys.readouterr().err


def test_the_pieces_of_a_gguf_file_must_be_the_tokenizers(own, outside):
    other, tokenizer = own[1], Tokenizer.load(outside / "tokenizer.model")
    for pieces in (tokenizer.pieces(range(50)), [*tokenizer.pieces(range(50)), "<padding>"]):
        source = weights.WeightSource(Path("m.gguf"), (), {}, None, pieces=lambda pieces=pieces: pieces)
        check_weights_tokenizer(source, source.path, tokenizer)
        with pytest.raises(UserError, match="m.gguf"):
            check_weights_tokenizer(source, source.path, other)
