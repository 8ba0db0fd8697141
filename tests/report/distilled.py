"""A run with real rollouts, a real teacher store, and the tokenizer to read them with."""

from pathlib import Path

import numpy as np

from mindspore_impl.data.rollouts import Rollout, to_sample, write_rollouts
from mindspore_impl.data.teacher_store import StoreHeader
from mindspore_impl.data.teacher_store_writer import StoreWriter
from mindspore_impl.text.chat import encode_completion, render_prompt
from mindspore_impl.text.records import Message
from mindspore_impl.text.tokenizer import train_tokenizer
from tests.report.fixture import build_run

TOP_K = 3


def build_distilled(folder: Path, rollouts: int = 30, hostile: str = "", name: str = "quickstart") -> Path:
    """`fixture.build_run` with `rollouts` answers, the last of which the store lacks."""
    build_run(folder, hostile=hostile, name=name)
    texts = [f"list {a} {b} apply sort reverse <{a}>" for a in "abcdef" for b in "abcdef"]
    (folder / "tokenizer").mkdir()
    tokenizer = train_tokenizer(texts, folder / "tokenizer" / "tokenizer.model", 96, 1.0)
    items = [_rollout(number, tokenizer, hostile) for number in range(rollouts)]
    (stage,) = (folder / "stages").glob("*_rollout_fast")
    write_rollouts(stage / "rollouts.jsonl", items)
    (stage,) = (folder / "stages").glob("*_capture_fast")
    header = StoreHeader("t" * 64, tokenizer.sha256, tokenizer.vocab_size, TOP_K, 1.0, "top_k")
    writer = StoreWriter(stage / "store", header)
    draw = np.random.default_rng(0)
    for item in items[:-1]:
        sample = to_sample(item, tokenizer)
        targets = sample.ids[1:][sample.supervised[1:]]
        ids_SK = np.stack([_ids(int(target), row) for row, target in enumerate(targets)])
        mass_SK = -np.sort(-draw.dirichlet(np.ones(TOP_K + 1), len(targets)), axis=1)
        logp_SK = np.log(mass_SK).astype(np.float32)
        writer.add(sample.ids, sample.supervised, ids_SK, logp_SK[:, :TOP_K], logp_SK[:, TOP_K])
    writer.close()
    return folder


def _ids(target: int, row: int) -> np.ndarray:
    """Distinct ids: with the target first in even rows, without it in odd ones."""
    others = [number for number in range(30, 40) if number != target]
    return np.array(([target, *others] if row % 2 == 0 else others)[:TOP_K])


def _rollout(number: int, tokenizer, hostile: str) -> Rollout:
    thinking = "reasoning" if number % 3 == 0 else "fast"
    messages = (Message("user", f"list {'abcdef'[number % 6]} {'abcdef'[number // 6]} apply sort"),)
    text = "[unused16]sort a[unused17]a b" if thinking == "reasoning" else "[unused16][unused17]b a"
    prompt = render_prompt(messages, tokenizer, thinking)
    ids = encode_completion(text, True, thinking, tokenizer, "here")
    return Rollout(f"r{number}{hostile}", messages, thinking, prompt, ids, text, "stop", None, tokenizer.sha256)
