"""kill -9 at any moment: after every single file operation of every kind of work, the same command goes on and ends
with the same bytes.

A kill is played by failing every file operation after the n-th, those of the clean-up included, for every n.
"""

import os
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mindspore_impl.data.teacher_store import StoreHeader, StoreReader
from mindspore_impl.data.teacher_store_writer import StoreWriter
from mindspore_impl.distill.jobs import CaptureJob, RolloutJob
from mindspore_impl.distill.options import CaptureOptions, RolloutOptions
from mindspore_impl.distill.rollout import run_rollout
from mindspore_impl.evaluation.options import EvaluationOptions
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.text.chat import Sample
from mindspore_impl.text.records import Message, Record
from mindspore_impl.text.tokenizer import train_tokenizer

OPERATIONS = ("replace", "rename", "fsync", "unlink", "mkdir", "rmdir", "chmod", "open")


class Killed(BaseException):
    """Nothing handles it."""


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def run_for(monkeypatch):
    """run_for(function, n) -> whether `function` ended within n file operations; else it was killed after them."""

    def run(function, operations: int) -> bool:
        left = [operations]

        def limited(real):
            def operation(*arguments, **names):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return real(*arguments, **names)

            return operation

        with monkeypatch.context() as patch:
            for name in OPERATIONS:
                patch.setattr(os, name, limited(getattr(os, name)))
            try:
                function()
            except Killed:
                return False
        return True

    return run


def content(folder: Path, without: set[str] = frozenset()) -> dict[str, bytes]:
    """Every file below `folder`, hidden ones too, but for those named `without`, which hold times."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() if name not in without else b"" for name, path in found.items()}


def check_every_kill(run_for, work, tmp_path: Path, without: set[str] = frozenset(), most: int = 10_000) -> int:
    """work(folder) -> how much was computed: killed after n operations, for all n, then run again; returns the n's.

    At most one part of `most` may be computed twice.
    """
    whole = work(tmp_path / "whole")
    expected = content(tmp_path / "whole", without)
    done, operations = False, 0
    while not done:
        folder, first = tmp_path / f"killed_{operations}", []
        done = run_for(lambda folder=folder, first=first: work(folder, first), operations)
        second = []
        work(folder, second)
        assert content(folder, without) == expected, f"killed after {operations} operations"
        assert sum(first) + sum(second) <= whole + most, f"killed after {operations} operations"
        operations += 1
    assert operations > 20
    return operations


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = [f"list {a} {b} apply sort reverse answer {a}" for a in "abcdef" for b in "abcdef"]
    return train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", 96, 1.0)


class Engine:
    """Answers by the prompt and the seed alone; says in `asked` how many prompts it was given."""

    def __init__(self, tokenizer, asked):
        self.tokenizer, self.asked = tokenizer, asked

    def generate(self, prompts, sampling, seeds, progress=None):
        self.asked.append(len(prompts))
        return [self.answer(random.Random(f"{prompt} {seed}")) for prompt, seed in zip(prompts, seeds, strict=True)]

    def answer(self, draw):
        special = self.tokenizer.special
        text = self.tokenizer.encode(" ".join(draw.choice("ab") for _ in range(draw.randrange(1, 4))))
        ended = draw.random() < 0.7
        ids = [special["[unused16]"], special["[unused17]"], *text] + [special["[unused10]"]] * ended
        return SimpleNamespace(ids=ids, finished=ended)


def records(count: int) -> list[Record]:
    turns = [(Message("user", f"list a b apply sort {text}"), Message("assistant", "a b")) for text in "abcdef"[:count]]
    return [Record(f"r{i}", turn, "fast", {"task": "exact", "answer": "a b"}) for i, turn in enumerate(turns)]


def rollout_of(tokenizer, count: int):
    """work(folder, asked) for `check_every_kill`: a rollout of `count` prompts."""
    options, sampling = RolloutOptions(prompts_per_part=2), SamplingOptions(batch_size=2)

    def work(folder, asked=None):
        asked = [] if asked is None else asked
        make = {"make_engine": lambda *_: Engine(tokenizer, asked)}
        run_rollout(RolloutJob(tokenizer, records(count), options, sampling, folder, 3, "ab" * 32, **make))
        return sum(asked)

    return work


def test_a_rollout(run_for, tokenizer, tmp_path):
    check_every_kill(run_for, rollout_of(tokenizer, 5), tmp_path, {"rollouts.json"}, most=2)


def test_a_rollout_that_is_killed_again_and_again(run_for, tokenizer, tmp_path):
    work, runs = rollout_of(tokenizer, 6), 1
    work(tmp_path / "whole")
    while not run_for(lambda: work(tmp_path / "killed"), 20):
        runs += 1
        assert runs < 10
    assert runs > 3
    assert content(tmp_path / "killed", {"rollouts.json"}) == content(tmp_path / "whole", {"rollouts.json"})


def test_an_evaluation(run_for, tokenizer, tmp_path, monkeypatch):
    pytest.importorskip("mindspore")
    from mindspore_impl.evaluation import harness, teacher_forced

    options = EvaluationOptions(["one", "two"], ["one"], batch_size=2, samples_in_report=2, sequence_length=64, rows=1)
    sets, computed = {"one": records(3), "two": records(1)}, []

    def sums(_, batch):
        computed[-1].append(1)
        bins = [[float(batch.supervised), 1.0, 1.0 / (1 + number)] for number in range(harness.BINS)]
        return {"ce": float(np.log(1 + batch.input_ids_BL.sum())), "tokens": float(batch.supervised), "bins": bins}

    monkeypatch.setattr(teacher_forced, "BATCHES_PER_PART", 1)
    monkeypatch.setattr(harness, "_engine", lambda *_: Engine(tokenizer, computed[-1]))
    monkeypatch.setattr(teacher_forced, "_predictions", lambda _: None)
    monkeypatch.setattr(teacher_forced, "prediction_sums", sums)
    results = []

    def work(folder, asked=None):
        computed.append([] if asked is None else asked)
        results.append(harness.evaluate(harness.EvaluationJob(None, tokenizer, sets, options, folder, 0)))
        return sum(computed[-1])

    check_every_kill(run_for, work, tmp_path, {"samples.json"}, most=3)
    for result in results:
        for of_set in result["accuracy"].values():
            of_set.pop("seconds")
    assert all(result == results[0] for result in results) and results[0]["perplexity"]["one"]["loss"] > 0


HEADER = StoreHeader("t" * 64, "k" * 64, 50, 3, 1.0, "top_k")


def samples(count: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 50, n).astype(np.int32) for n in rng.integers(6, 12, count)]
    return [Sample(ids_S, np.arange(len(ids_S)) > 2, f"r{i}", "fast") for i, ids_S in enumerate(ids)]


def teacher_rows(sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(sample.ids)
    count = int(sample.supervised[1:].sum())
    logp_SK = np.log(np.tile(np.array([0.4, 0.3, 0.2], np.float32), (count, 1)))
    return np.stack([rng.permutation(50)[:3] for _ in range(count)]), logp_SK, np.full(count, np.log(0.1), np.float32)


def test_a_capture(run_for, tmp_path, monkeypatch):
    pytest.importorskip("mindspore")
    from mindspore_impl.distill import capture

    computed = []

    def score(self, samples, batches):
        for _, placements in batches:
            for index, _ in (piece for row in placements for piece in row):
                computed[-1].append(1)
                yield samples[index], teacher_rows(samples[index])

    monkeypatch.setattr(capture, "TeacherScorer", type("Scorer", (), {"__init__": lambda *_: None, "score": score}))
    model = SimpleNamespace(lm_head_weight=np.zeros((50, 2)))
    tokenizer = SimpleNamespace(sha256="k" * 64, vocab_size=50)
    options = CaptureOptions(top_k=3, rows_per_batch=1, positions_per_shard=12)

    def work(folder, asked=None):
        computed.append([] if asked is None else asked)
        capture.run_capture(CaptureJob(tokenizer, samples(9), options, folder, 0, 24, "t" * 64, model))
        return sum(computed[-1])

    check_every_kill(run_for, work, tmp_path, most=6)
    assert len(list((tmp_path / "whole" / "store").glob("shard-*.safetensors"))) > 2


def test_a_store_that_is_written_in_one_process(run_for, tmp_path):
    grown = samples(12)

    def work(folder, asked=None, count=8):
        writer = StoreWriter(folder, HEADER, 25)
        for sample in grown[:count]:
            writer.add(sample.ids, sample.supervised, *teacher_rows(sample))
        writer.close()
        return 0

    check_every_kill(run_for, work, tmp_path)
    whole = content(tmp_path / "whole")
    done, operations = False, 0
    while not done:  # a finished store that grows stays whole until the larger one is
        done = run_for(lambda: work(tmp_path / "whole", count=12), operations)
        reader = StoreReader(tmp_path / "whole")
        assert reader.sequences in (8, 12) and (reader.sequences == 12 or not done)
        for sample in grown[: reader.sequences]:
            reader.lookup(sample.ids, sample.supervised)
        operations += 1
    assert content(tmp_path / "whole").keys() > whole.keys()


def test_the_kill_is_real(run_for, tmp_path):
    """The check itself: work that is not atomic does not pass it."""

    def work(folder, asked=None):
        folder.mkdir(exist_ok=True)
        for number in range(25):
            if not (folder / f"{number}").exists():
                (folder / f"{number}").write_text("half")
                os.replace(folder / f"{number}", folder / "moved")
                (folder / f"{number}").write_text("whole")
        return 0

    with pytest.raises(AssertionError, match="killed after"):
        check_every_kill(run_for, work, tmp_path)
