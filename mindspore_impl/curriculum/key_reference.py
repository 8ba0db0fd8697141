"""Write conf/README.md, every key with the comment behind its field.

python -m mindspore_impl.curriculum.key_reference
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union

from mindspore_impl import files
from mindspore_impl.config import conf_folder
from mindspore_impl.curriculum.configuration import Config, tagged_unions
from mindspore_impl.schema import Kinds, rule_of

INTRODUCTION = """# Configuration

`conf/` holds Hydra groups, one folder a group. `config.yaml` is the root; an experiment (`experiment/*.yaml`) chooses
from the groups and states what it sets itself. In order, later ones win:

1. the defaults of the tables below, each stated once, in the code;
2. the chosen groups: `runtime`, `data`, `model` (once for each entry of `models`), `curriculum` (which places stages of
   the group `stage` under names, with their `optimizer`, `objective` and `export`);
3. the experiment, then the `sweep`;
4. the command line: `key=value`, `group=choice`, `group@place=choice`, `~key` to remove a key.

```
python tools/train.py experiment=quickstart data=list_programs_clean stages.teacher.train.max_steps=50
python tools/train.py --show-config experiment=quickstart
```

A YAML file here says only what differs from the defaults. A key that is not in a table is refused, with the nearest one
named. `NAME` is a name of your choice. A stage runs when `order` lists it; a data set is read when a stage names it.
Ranges include their ends, except after ">". Keys marked \\* decide what is logged or kept, or how fast a stage runs,
never its result: a finished stage does not run again when they change.

This page is generated: `python -m mindspore_impl.curriculum.key_reference`.
"""
_NAMES = {int: "integer", float: "number", str: "text", bool: "true, false"}


def reference() -> str:
    """The content of conf/README.md: the keys of this package, without those of plugins."""
    unions = {}
    for base, kinds in tagged_unions().items():
        own = {name: schema for name, schema in kinds.types.items() if schema.__module__.startswith("mindspore_impl.")}
        unions[base] = Kinds(kinds.tag, own)
    return INTRODUCTION + "".join(_Pages(unions).section(Config, "", "The run"))


def comments_of(schema: type) -> dict[str, str]:
    """{field: the comment behind it} of a dataclass and its bases."""
    sources = [inspect.getsource(base) for base in reversed(schema.__mro__) if dataclasses.is_dataclass(base)]
    return dict(re.findall(r"^    (\w+): .*?  # (.+)$", "\n".join(sources), re.MULTILINE))


class _Pages:
    """Sections of the page, each dataclass once, at its first place."""

    def __init__(self, kinds: Mapping[type, Kinds]):
        self.kinds, self.places = kinds, {}

    def section(self, schema: type, place: str, title: str, without: tuple[str, ...] = ()) -> Iterator[str]:
        """The table of a dataclass at the dotted `place`, then the sections of what it holds."""
        if schema in self.places:
            return
        self.places[schema] = place
        yield f"\n## {title}\n\n{inspect.getdoc(schema)}\n"
        comments, hints, nested = comments_of(schema), typing.get_type_hints(schema), []
        rows = []
        for field in dataclasses.fields(schema):
            hint, below = hints[field.name], f"{place}.{field.name}".lstrip(".")
            inner, below = _inner(hint, below)
            if inner in self.kinds or dataclasses.is_dataclass(inner):
                nested.append((inner, below))
            if field.name not in without:
                rows.append(_row(field, hint, self.places.get(inner, below), comments.get(field.name, "")))
        if rows:
            yield "\n| key | type | default | range | meaning |\n|---|---|---|---|---|\n"
            yield from rows
        for inner, below in nested:
            yield from self._kinds(inner, below) if inner in self.kinds else self.section(inner, below, f"`{below}`")

    def _kinds(self, base: type, place: str) -> Iterator[str]:
        tag, variants = self.kinds[base].tag, self.kinds[base].types
        shared = tuple(field.name for field in dataclasses.fields(base))
        yield from self.section(base, place, f"`{place}`")
        by_schema: dict[type, list[str]] = {}
        for name, schema in variants.items():
            by_schema.setdefault(schema, []).append(f"`{name}`")
        for schema, names in by_schema.items():
            yield from self.section(schema, place, f"`{place}` with `{tag}` {', '.join(names)}", shared)


def _inner(hint: Any, place: str) -> tuple[Any, str]:
    """The type inside `X | None` and `dict[str, X]`, and its place."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        hint = next(each for each in typing.get_args(hint) if each is not type(None))
    if typing.get_origin(hint) is dict:
        return typing.get_args(hint)[1], f"{place}.NAME"
    return hint, place


def _row(field: dataclasses.Field, hint: Any, below: str, comment: str) -> str:
    rule = rule_of(field)
    kind = f"see `{below}`" if dataclasses.is_dataclass(_inner(hint, "")[0]) else _type(hint)
    if rule.artifact not in (None, "file"):
        kind = f"stage, or path, of {rule.artifact}"
    if rule.choices:
        kind += f": {', '.join(rule.choices())}"
    name = f"`{field.name}`" + ("" if rule.fingerprint else " \\*")
    bounds = (("from", rule.low), (">", rule.above), ("to", rule.high))
    limits = " ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)
    if rule.low is not None and rule.high is not None:
        limits = f"{rule.low} to {rule.high}"
    cells = (name, kind, _default(field), limits, comment)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _type(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        inner = ", ".join(_type(each) for each in arguments if each is not type(None))
        return f"{inner}, null" if type(None) in arguments else inner
    if origin is Literal:
        return ", ".join(arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping to {_type(arguments[1])}"
    return _NAMES[hint]


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is dataclasses.MISSING:
        return "must be given"
    elif dataclasses.is_dataclass(value := field.default_factory()):
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return {"None": "null", "True": "true", "False": "false", "": "must be given"}.get(str(value), str(value)).replace(
        "'", ""
    )


if __name__ == "__main__":
    files.write_text(conf_folder() / "README.md", reference())
