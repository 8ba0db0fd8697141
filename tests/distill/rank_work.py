"""What two processes do in tests/distill/test_ranks_share.py: rollout, capture and evaluation, shared and alone."""

import functools
import os
import signal
from contextlib import contextmanager

from mindspore_impl import files, runtime
from mindspore_impl.distill import capture
from mindspore_impl.distill.jobs import CaptureJob, RolloutJob
from mindspore_impl.distill.options import CaptureOptions, RolloutOptions
from mindspore_impl.distill.rollout import run_rollout
from mindspore_impl.distributed import ranks
from mindspore_impl.evaluation import harness, teacher_forced
from mindspore_impl.evaluation.options import EvaluationOptions
from mindspore_impl.generation.engine import Engine
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.text.chat import render
from mindspore_impl.text.records import Message, Record
from tests.distill.small import small_model, small_tokenizer


@contextmanager
def alone():
    """Work as a single process for a while."""
    earlier = ranks._state["gather"], os.environ["RANK_ID"], os.environ["RANK_SIZE"]
    ranks._state["gather"], os.environ["RANK_ID"], os.environ["RANK_SIZE"] = None, "0", "1"
    try:
        yield
    finally:
        ranks._state["gather"], os.environ["RANK_ID"], os.environ["RANK_SIZE"] = earlier


class Work:
    """The three kinds of work over one tiny model, whose graphs are compiled once."""

    def __init__(self, folder):
        self.tokenizer = small_tokenizer(folder / f"tokenizer_{runtime.rank()}.model")
        self.model = small_model(self.tokenizer.vocab_size)
        self.engine = Engine(self.model, self.tokenizer)
        words = [f"list {'abcdef'[i % 6]} {'abcdef'[i // 6]}" + " sort" * (i % 5) for i in range(12)]
        turns = [(Message("user", text), Message("assistant", "a b")) for text in words]
        self.records = [Record(f"r{i}", turn, "fast", {"task": "exact", "answer": "a"}) for i, turn in enumerate(turns)]
        capture.TeacherScorer = functools.cache(capture.TeacherScorer)
        harness._engine, teacher_forced._predictions = (
            lambda *_: self.engine,
            functools.cache(teacher_forced._predictions),
        )

    def rollout(self, folder):
        sampling = SamplingOptions(max_new_tokens=6, batch_size=4)
        options = RolloutOptions(prompts_per_part=2, samples_per_prompt=2)
        arguments = (self.tokenizer, self.records, options, sampling, folder, 3, "ab" * 32)
        return run_rollout(RolloutJob(*arguments, make_engine=lambda *_: self.engine))

    def capture(self, folder):
        samples = [render(record, self.tokenizer) for record in self.records]
        options = CaptureOptions(top_k=4, rows_per_batch=1, positions_per_shard=10)
        return capture.run_capture(
            CaptureJob(self.tokenizer, samples, options, folder, 0, 48, weights_sha256="t" * 64, model=self.model)
        )

    def evaluate(self, folder):
        teacher_forced.BATCHES_PER_PART = 1
        options = EvaluationOptions(["s"], ["s"], max_new_tokens=6, batch_size=4, sequence_length=48, rows=1)
        return harness.evaluate(
            harness.EvaluationJob(self.model, self.tokenizer, {"s": self.records}, options, folder, 0)
        )

    def all(self, folder):
        found = [self.rollout(folder), self.capture(folder), self.evaluate(folder)]
        found[2]["accuracy"]["s"].pop("seconds")
        return [{key: value for key, value in one.items() if "second" not in key} for one in found]


def results(folder):
    """The hash of each result below a folder; those of notes hold times."""
    names = ["rollouts.jsonl", "samples.jsonl", *sorted(f"store/{path.name}" for path in (folder / "store").iterdir())]
    return {name: files.sha256_file(folder / name) for name in names}


def share(folder):
    work, rank = Work(folder), runtime.rank()
    shared = folder / "shared"
    metrics = work.all(shared)
    with alone():
        own = folder / f"alone_{rank}"
        alone_metrics = work.all(own)
        alone_results = results(own)
    ranks.barrier()
    stopped = stop(work, folder / "stopped")
    ranks.barrier()
    report = {"metrics": metrics, "alone_metrics": alone_metrics, "alone": alone_results, "shared": results(shared)}
    return report | stopped


def stop(work, folder):
    """SIGTERM reaches rank 1 while it generates; both stop, and one process alone goes on."""
    ranks.stop_on_sigterm()
    generate, parts = work.engine.generate, []

    def told(*arguments, **names):
        parts.append(1)
        if runtime.rank() == 1 and len(parts) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return generate(*arguments, **names)

    work.engine.generate = told
    try:
        work.rollout(folder)
        agreed = None
    except ranks.Stopped as caught:
        agreed = caught.agreed
        ranks.settle(caught)
    ranks.forget_stop()
    work.engine.generate = generate
    made = len(list(folder.rglob("part_*.json")))
    ranks.barrier()
    if runtime.rank() == 0:
        with alone():
            work.rollout(folder)
    ranks.barrier()
    return {"agreed": agreed, "made": made, "continued": files.sha256_file(folder / "rollouts.jsonl")}
