"""Records, and one step at a time over them."""

import json
from collections import namedtuple
from pathlib import Path

import pytest

from mindspore_impl.data.selection import recipe, runner
from mindspore_impl.data.selection.stream import Context, Item
from mindspore_impl.text.records import Message, Record

Result = namedtuple("Result", "kept drops notes items")


def make_item(answer, prompt="Why?", reasoning=None, identity="1", thinking=None, meta=None, set_name="train"):
    messages = [Message("user", prompt)] + ([] if answer is None else [Message("assistant", answer, reasoning)])
    thinking = thinking or ("fast" if reasoning is None else "reasoning")
    return Item(Record(identity, tuple(messages), thinking, meta or {}), set_name, f"file.jsonl:{identity}")


@pytest.fixture
def item():
    return make_item


@pytest.fixture
def apply(tmp_path):
    """Run one step over items: ids kept, {id: Drop}, notes, the items kept."""

    def apply(name, items, sets=None, **options):
        items = [make_item(one, identity=str(n)) if isinstance(one, str) else one for n, one in enumerate(items)]
        drops = {}

        def drop(one, why):
            drops[one.record.id] = why

        context = Context(f"steps[0].{name}", lambda wanted: iter(sets[wanted]), drop, tmp_path)
        step = recipe.planned({name: options}, "steps[0]")
        kept = list(step.run(step.options, context, iter(items)))
        return Result([one.record.id for one in kept], drops, context.notes, kept)

    return apply


@pytest.fixture
def select(tmp_path):
    """Run a recipe over lines of a file; returns (report, selected records, output folder)."""

    def select(lines, steps, force=False, overrides=(), **keys):
        train = tmp_path / "train.jsonl"
        if lines is not None:
            text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
            train.write_text("".join(line + "\n" for line in text), encoding="utf-8")
        plain = {
            "select": ["train"], "output": str(tmp_path / "out"), "steps": steps,
            "data": {"sets": {"train": {"source": "prompt_answer", "path": str(train)}}},
        }  # fmt: skip
        for key, value in keys.items():
            plain[key] = value
        file = tmp_path / "mine.yaml"
        file.write_text(json.dumps(plain), encoding="utf-8")
        loaded = recipe.load(str(file), list(overrides))
        report = runner.run(loaded, "mine", force)
        output = Path(loaded.options.output)
        selected = [json.loads(line) for line in (output / "selected.jsonl").read_text("utf-8").splitlines()]
        return report, selected, output

    return select
