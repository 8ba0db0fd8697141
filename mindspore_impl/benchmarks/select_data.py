"""Data selection: a million made-up records through the rules, and near-duplicates planted at known places.

The rules are those of conf/selection/filters_only.yaml, from file to file; each size runs in a process of its own, whose
peak memory tells whether it grows with the file. Near-duplicates are compared with datasketch as its documentation
uses it (signatures in bulk, candidates taken as they come), on records of which every twentieth repeats an earlier one
with some words changed.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.benchmarks.common import Row, publish

NAME = "select_data"
SIZES = (100_000, 1_000_000)
SYLLABLES = "ba co di fu ge hi jo ka le mi no pa qu ri so ta u vi wo xa ye zo st tr ing er".split()
CHINESE = [chr(point) for point in range(0x4E00, 0x4E00 + 2500)]


def made_up_records(count: int, seed: int = 0) -> Iterator[dict]:
    """Records as long as GSM8K's: one in four Chinese, one in eight with a code block, one in a hundred faulty.

    Words and characters are drawn as those of a language are, a few often and most rarely.
    """
    draw = random.Random(seed)
    vocabulary = list({"".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(4000)})
    english = [" ".join(_drawn(draw, sorted(vocabulary), draw.randint(20, 45))) + "." for _ in range(4000)]
    chinese = ["".join(_drawn(draw, CHINESE, draw.randint(30, 80))) + "。" for _ in range(2000)]
    faults = ["As an AI language model, I cannot do that.", "Broken \ufffd text.", "```python\nnever closed", "say it " * 40]
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


def run(json_path: str | Path | None = None, sizes: tuple[int, ...] = SIZES) -> list[Row]:
    """Measure, print, append to outputs/benchmarks.csv, write JSON on request."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in sizes:
            source = Path(folder) / f"records_{count}.jsonl"
            files.write_jsonl(source, made_up_records(count))
            report = select("filters_only", Path(folder) / f"selected_{count}", f"data.train={source}")
            case = f"rules, {count:,} records of {source.stat().st_size / count:.0f} bytes"
            rows.append(Row(NAME, case, "throughput", "records/s", report["records_per_second"]))
            rows.append(Row(NAME, case, "peak of the process", "MB", report["peak_mb"]))
            source.unlink()
    publish(rows, json_path)
    return rows


def select(recipe: str, output: Path, *overrides: str) -> dict:
    """The report of tools/select_data.py in a process of its own."""
    code = "import sys; from mindspore_impl.cli import select_data; sys.exit(select_data(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", code, recipe, f"output={output}", *overrides]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return json.loads((output / "report.json").read_text(encoding="utf-8"))
