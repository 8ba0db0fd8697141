"""Data selection: the rules on a million synthetic records, and near-duplicates planted at known places.

The rules are those of conf/selection/filters_only.yaml; each size runs in a process of its own. What the two steps that
remember texts hold is counted by tracemalloc. The peer is datasketch as its documentation uses it: signatures of 128
values in bulk, its own bands for the threshold, every candidate taken for a duplicate.
"""

import random
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.data.selection.recipe import planned
from mindspore_impl.data.selection.stream import Context, Item
from mindspore_impl.data.selection.words import word_hashes, words
from mindspore_impl.distributed import processes
from mindspore_impl.speed.common import Row, alternate, compared, medians
from mindspore_impl.text.records import Message, Record

SIZES = (100_000, 1_000_000)
HELD = 2000  # texts, to count what is held of each
THRESHOLD = 0.8  # of near-duplicates
SYLLABLES = "ba co di fu ge hi jo ka le mi no pa qu ri so ta u vi wo xa ye zo st tr ing er".split()
CHINESE = [chr(point) for point in range(0x4E00, 0x4E00 + 2500)]


def made_up_records(count: int, seed: int = 0) -> Iterator[dict]:
    """Records as long as GSM8K's: one in four Chinese, one in eight with a code block, one in a hundred faulty."""
    draw = random.Random(seed)
    vocabulary = sorted({"".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(4000)})
    english = [" ".join(_drawn(draw, vocabulary, draw.randint(20, 45))) + "." for _ in range(4000)]
    chinese = ["".join(_drawn(draw, CHINESE, draw.randint(30, 80))) + "。" for _ in range(2000)]
    faults = [
        "As an AI language model, I cannot do that.",
        "Broken \ufffd text.",
        "```python\nnever closed",
        "say it " * 40,
    ]
    for number in range(count):
        question, reasoning, answer = draw.choices(chinese if number % 4 == 0 else english, k=3)
        if number % 8 == 1:
            answer += f"\n```python\nprint({number})\n```\n"
        if number % 100 == 50:
            answer = faults[number // 100 % len(faults)]
        turns = [
            {"role": "user", "content": f"{question} {number}?"},
            {"role": "assistant", "content": answer, "reasoning": reasoning},
        ]
        yield {"id": str(number), "messages": turns, "thinking": "reasoning", "meta": {"task": "exact", "answer": "1"}}


def _drawn(draw: random.Random, choices: list[str], count: int) -> list[str]:
    """`count` of `choices`, the n-th about 1 / n as often as the first."""
    return [choices[int(len(choices) ** draw.random()) - 1] for _ in range(count)]


def rows(sizes: tuple[int, ...] = SIZES, texts: int = 20_000, rounds: int = 5) -> list[Row]:
    """The rules at each size, what is held of each text, and near-duplicates against datasketch."""
    return [row for count in sizes for row in rule_rows(count)] + held_rows(min(texts, HELD)) + near_rows(texts, rounds)


def rule_rows(count: int) -> list[Row]:
    """Throughput and peak memory of the rules over that many records, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "records.jsonl", Path(folder) / "selected"
        files.write_jsonl(source, made_up_records(count))
        code = "import sys; from mindspore_impl.cli import select_data; sys.exit(select_data.main())"
        command = [sys.executable, "-c", code, "filters_only", f"output={output}", f"data.train={source}"]
        subprocess.run(command, check=True, env=processes.environment(), stdout=subprocess.DEVNULL)
        report = files.read_json(output / "report.json")
        case = f"rules, {count:,} records of {source.stat().st_size / count:.0f} bytes"
    return [
        Row(case, "throughput", "records/s", report["records_per_second"]),
        Row(case, "processor time", "us a record", 1e6 * report["processor_seconds"] / count),
        Row(case, "peak of the process", "MB", report["peak_mb"]),
    ]


def near_rows(count: int, rounds: int) -> list[Row]:
    """Throughput, recall and precision on texts of which every twentieth repeats an earlier one, more or less."""
    texts, similar = planted(count)
    found: dict[str, set[int]] = {}
    runs = {"ours": lambda: found.update(ours=near_duplicates(texts)), "peer": lambda: found.update(peer=plain(texts))}
    seconds = medians(alternate(runs, rounds))
    right = {number for number, similarity in similar.items() if similarity >= THRESHOLD}
    figures = (
        ("throughput", "texts/s", lambda side: count / seconds[side]),
        ("recall", "share", lambda side: len(found[side] & right) / len(right)),
        ("precision", "share", lambda side: len(found[side] & right) / len(found[side])),
    )
    case = f"near duplicates, {count:,} texts"
    return [compared(case, metric, unit, of("ours"), of("peer"), "datasketch", True) for metric, unit, of in figures]


def held_rows(count: int) -> list[Row]:
    """What exact and near duplicates hold of each text that they have let through."""
    texts, _ = planted(count)
    rows = []
    for name in ("exact_duplicates", "near_duplicates"):
        case = f"{name.replace('_', ' ')}, {count:,} texts of {sum(map(len, texts)) / count:.0f} bytes"
        rows.append(Row(case, "held of each text", "bytes", held_of_each(name, texts)))
    return rows


def held_of_each(name: str, texts: list[str]) -> float:
    """Bytes that a step has come to hold, over the texts that it let through; not the bounded cache of word hashes."""
    for text in texts:
        word_hashes(text)
    tracemalloc.start()
    try:
        stream = kept_by(name, ["loads what is loaded once", *texts], {}, lambda *_: None)
        next(stream)
        before, held, kept = tracemalloc.get_traced_memory()[0], 0, 0
        for _ in stream:
            held, kept = tracemalloc.get_traced_memory()[0] - before, kept + 1
        return held / kept
    finally:
        tracemalloc.stop()


def planted(count: int, seed: int = 0) -> tuple[list[str], dict[int, float]]:
    """Texts, and the similarity of every twentieth to an earlier one: by turns just above THRESHOLD and just below."""
    draw = random.Random(seed)
    texts, similar = [], {}
    for number, record in enumerate(made_up_records(2 * count, seed)):
        if len(texts) == count:
            break
        if number % 4 == 0:  # the Chinese ones
            continue
        if len(texts) % 20 == 19:
            least = THRESHOLD if len(texts) % 40 == 19 else THRESHOLD - 0.08
            text, similarity = spoiled(texts[draw.randrange(len(texts))], least, draw)
            similar[len(texts)] = similarity
        else:
            text = " ".join(turn["content"] for turn in record["messages"]) + record["messages"][1]["reasoning"]
        texts.append(text)
    return texts, similar


def spoiled(text: str, least: float, draw: random.Random) -> tuple[str, float]:
    """`text` with words changed as long as the similarity stays at `least`, and that similarity."""
    found, similarity = text.split(), 1.0
    for place in draw.sample(range(len(found)), len(found)):
        changed = [*found[:place], f"changed{place}", *found[place + 1 :]]
        if (now := similarity_of(text, " ".join(changed))) < least:
            break
        found, similarity = changed, now
    return " ".join(found), similarity


def similarity_of(left: str, right: str) -> float:
    """Jaccard similarity of the sets of three words in a row."""
    left_runs, right_runs = runs_of(left), runs_of(right)
    return len(left_runs & right_runs) / len(left_runs | right_runs)


def runs_of(text: str) -> set[bytes]:
    """Three words in a row each, as bytes."""
    found = words(text)
    return {" ".join(found[at : at + 3]).encode() for at in range(len(found) - 2)}


def near_duplicates(texts: list[str]) -> set[int]:
    """The numbers of the texts that our step drops."""
    dropped = set()
    for _ in kept_by("near_duplicates", texts, {"threshold": THRESHOLD}, lambda item, _: dropped.add(int(item.place))):
        pass
    return dropped


def kept_by(name: str, texts: list[str], options: dict, drop) -> Iterator[Item]:
    """The items that the step `name` of a recipe keeps; it passes the others to `drop`."""
    step = planned({name: {"of": "prompt"} | options}, "steps[0]")
    items = (
        Item(Record(str(number), (Message("user", text),), "fast"), "texts", str(number))
        for number, text in enumerate(texts)
    )
    with tempfile.TemporaryDirectory() as folder:
        yield from step.run(step.options, Context(name, None, drop, Path(folder)), items)


def plain(texts: list[str]) -> set[int]:
    """The numbers of the texts that have a candidate among the earlier ones that stay."""
    from datasketch import MinHash, MinHashLSH

    index, dropped = MinHashLSH(threshold=THRESHOLD, num_perm=128), set()
    for number, signature in enumerate(MinHash.generator(map(runs_of, texts), num_perm=128)):
        if index.query(signature):
            dropped.add(number)
        else:
            index.insert(number, signature)
    return dropped
