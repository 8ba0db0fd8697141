"""Dataclasses from plain data: field metadata, tagged unions, renamed keys. Imports only errors."""

import dataclasses
import difflib
import math
import operator
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from typing import Any, Literal, Union

from mindspore_impl.errors import UserError

SCHEMA = 2  # of config.yaml and of every file that holds configuration keys; 1 had the names on the left of RENAMED

# Where an old key stood ("*": any one name) and what it is called now.
RENAMED = {
    "models.*.num_layers": "num_hidden_layers",
    "models.*.num_heads": "num_attention_heads",
    "models.*.num_kv_heads": "num_key_value_heads",
    "models.*.tie_embeddings": "tie_word_embeddings",
    "data.sets.*.first": "skip",
    "stages.*.lora.rank": "r",
    "stages.*.lora.alpha": "lora_alpha",
    "stages.*.lora.targets": "target_modules",
    "stages.*.optimizer.beta1": "adam_beta1",
    "stages.*.optimizer.beta2": "adam_beta2",
    "stages.*.optimizer.eps": "adam_epsilon",
    "stages.*.optimizer.clip_norm": "max_grad_norm",
    "stages.*.optimizer.schedule": "lr_scheduler_type",
    "stages.*.data.accumulation": "gradient_accumulation_steps",
    "stages.*.train.steps": "max_steps",
    "stages.*.train.epochs": "num_train_epochs",
    "stages.*.train.log_interval": "logging_steps",
    "stages.*.train.validation_interval": "eval_steps",
    "stages.*.train.checkpoint_interval": "save_steps",
    "stages.*.train.keep_checkpoints": "save_total_limit",
}
_RENAMED = {tuple(pattern.split(".")): new for pattern, new in RENAMED.items()}
# Schema 1 gave every data set the keys of every source.
_OTHER_SOURCES = {"list_programs": {"path"}, "": {"split", "noise", "operations", "length", "seed"}}


@dataclass(frozen=True)
class Rule:
    """The metadata of a field made with `option`. Bounds are those of a number, or of each in a list or a dict."""

    low: float | None = None  # inclusive lower bound
    above: float | None = None  # exclusive lower bound
    high: float | None = None  # inclusive upper bound
    fingerprint: bool = True  # whether the value decides the result of a stage, and so is part of its fingerprint
    # Returns the valid names of a text, or of each text of a list; called at each check, so that plugins can add names.
    choices: Callable[[], Iterable[str]] | None = None
    # What is referred to: a stage or path that provides "weights", "store", "rollouts" or "records"; or "file".
    artifact: str | None = None

    def problem(self, value: float) -> str | None:
        """Why a number is out of range; None when it is not. A number with bounds must be finite."""
        low, above, high = self.low, self.above, self.high
        if (low, above, high) == (None, None, None):
            return None
        if not math.isfinite(value):
            return f"{value} is not a finite number"
        if low is not None and high is not None and not low <= value <= high:
            return f"{value} is not between {low} and {high}"
        checks = ((low, operator.lt, "below"), (above, operator.le, "not above"), (high, operator.gt, "above"))
        faults = (f"{value} is {text} {n}" for n, outside, text in checks if n is not None and outside(value, n))
        return next(faults, None)


@dataclass(frozen=True)
class Kinds:
    """A tagged union: the entry `tag` of a mapping names the dataclass in `types` that it is built as."""

    tag: str
    types: Mapping[str, type]


def option(default: Any = MISSING, *, default_factory: Any = MISSING, **rule: Any) -> Any:
    """A dataclass field with a `default` (or `default_factory`) whose metadata is a Rule with the fields in `rule`."""
    return dataclasses.field(default=default, default_factory=default_factory, metadata={"rule": Rule(**rule)})


def rule_of(field: dataclasses.Field) -> Rule:
    """The metadata of a field; empty for one that was not made with `option`."""
    return field.metadata.get("rule", Rule())


def build(schema: type, plain: Any, where: str, kinds: Mapping[type, Kinds] = types.MappingProxyType({})) -> Any:
    """The dataclass `schema` from plain dicts, lists and values.

    Args:
        schema: a dataclass, or a base class in `kinds`.
        plain: a mapping of its fields, as YAML or JSON holds it.
        where: its dotted path, for messages; "" at the root.
        kinds: the tagged union behind each base class that occurs as a type hint.

    Raises UserError that lists every unknown or renamed key, wrong type, missing value and unknown choice.
    """
    builder = _Builder(kinds)
    built = builder.convert(schema, plain, where)
    if builder.problems:
        raise UserError("configuration: " + "\n  ".join(builder.problems))
    return built


class _Builder:
    """One call of `build`; collects problems, in whose place the values are None."""

    def __init__(self, kinds: Mapping[type, Kinds]):
        self.kinds, self.problems = kinds, []

    def convert(self, hint: Any, value: Any, path: str) -> Any:
        """`value` as the type `hint` asks for, without any silent conversion but int to float."""
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (Union, types.UnionType):
            if value is None and type(None) in arguments:
                return None
            return self.convert(next(a for a in arguments if a is not type(None)), value, path)
        if origin is Literal:
            if type(value) is not str or value not in arguments:
                self.problems.append(f"{path}: {value!r} is not allowed{nearest(value, arguments)}")
            return value
        if origin is list and isinstance(value, list):
            return [self.convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value)]
        if origin is dict and isinstance(value, dict):
            return {str(k): self.convert(arguments[1], v, f"{path}.{k}") for k, v in value.items()}
        if hint in self.kinds or dataclasses.is_dataclass(hint):
            return self._dataclass(hint, value, path)
        if hint is float and type(value) is int:
            return float(value)
        if type(value) is not (origin or hint):
            expected = {int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list",
                        dict: "a mapping"}[origin or hint]  # fmt: skip
            self.problems.append(f"{path}: expected {expected}, found {value!r}")
        return value

    def _dataclass(self, schema: type, value: Any, path: str) -> Any:
        before = len(self.problems)
        if not isinstance(value, dict):
            self.problems.append(f"{path or 'config'}: expected a mapping, found {value!r}")
            return None
        siblings: dict[str, type] = {}
        if schema in self.kinds:
            tag, siblings = self.kinds[schema].tag, dict(self.kinds[schema].types)
            chosen = value.get(tag)
            if tag not in value:
                known = ", ".join(siblings)
                self.problems.append(f"{path}: not defined; check the name, or give its {tag} (one of: {known})")
                return None
            if not isinstance(chosen, str) or chosen not in siblings:
                self.problems.append(_join(path, tag) + f": {chosen!r} is unknown{nearest(chosen, siblings)}")
                return None
            schema = siblings[chosen]
        fields = {f.name: f for f in dataclasses.fields(schema)}
        hints, values = typing.get_type_hints(schema), {}
        for key, entry in value.items():
            where = _join(path, key)
            if key in fields:
                values[key] = self.convert(hints[key], entry, where)
                self._check_choices(rule_of(fields[key]), values[key], where)
            elif new := renamed(where):
                self.problems.append(f"{where}: renamed; write {new}")
            elif owners := ", ".join(name for name, s in siblings.items() if key in s.__dataclass_fields__):
                self.problems.append(f"{where}: is a key of {tag} {owners}, not of {chosen}; remove it (~{where})")
            else:
                self.problems.append(f"{where}: unknown key{nearest(key, fields)}")
        for name, field in fields.items():
            if name not in value and field.default is field.default_factory is MISSING:
                self.problems.append(f"{_join(path, name)}: no value given")
        return schema(**values) if len(self.problems) == before else None

    def _check_choices(self, rule: Rule, value: Any, where: str) -> None:
        if rule.choices is None or value is None:
            return
        names = list(rule.choices())
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and each not in names:
                self.problems.append(f"{where}: {each!r} is not allowed{nearest(each, names)}")


def to_plain(instance: Any) -> dict:
    """The inverse of `build`: nested dataclasses as plain containers."""
    return dataclasses.asdict(instance)


def range_problems(instance: Any, where: str = "") -> Iterator[str]:
    """Every number outside of its field's bounds, by its full key, in nested dataclasses, lists and dicts too."""
    if isinstance(instance, dict):
        for key, value in instance.items():
            yield from range_problems(value, _join(where, key))
    elif isinstance(instance, list):
        for index, value in enumerate(instance):
            yield from range_problems(value, f"{where}[{index}]")
    elif dataclasses.is_dataclass(instance):
        for field in dataclasses.fields(instance):
            value, rule, key = getattr(instance, field.name), rule_of(field), _join(where, field.name)
            yield from (f"{path}: {text}" for path, n in _numbers(value, key) if (text := rule.problem(n)))
            yield from range_problems(value, key)


class OutOfRangeError(UserError):
    """Numbers outside of their bounds, each by its key."""


def check_ranges(instance: Any, where: str) -> None:
    """Raise OutOfRangeError that lists the `range_problems` of an instance, if there are any."""
    if problems := list(range_problems(instance, where)):
        raise OutOfRangeError("; ".join(problems))


def checked(instance: Any, where: str) -> Any:
    """An instance made by hand, after a check of types, choices and ranges. Raises UserError that names the key."""
    build(type(instance), to_plain(instance), where)
    check_ranges(instance, where)
    return instance


def _numbers(value: Any, key: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, int | float):
        yield key, value
    elif isinstance(value, list):
        yield from ((f"{key}[{i}]", entry) for i, entry in enumerate(value) if isinstance(entry, int | float))
    elif isinstance(value, dict):
        yield from ((_join(key, k), entry) for k, entry in value.items() if isinstance(entry, int | float))


def fingerprint_content(instance: Any) -> Any:
    """Plain containers of what decides a result: without `fingerprint=False` fields, and without references."""
    if isinstance(instance, dict):
        return {key: fingerprint_content(value) for key, value in instance.items()}
    if isinstance(instance, list):
        return [fingerprint_content(value) for value in instance]
    if not dataclasses.is_dataclass(instance):
        return instance
    rules = {field.name: rule_of(field) for field in dataclasses.fields(instance)}
    kept = [name for name, rule in rules.items() if rule.fingerprint and rule.artifact is None]
    return {name: fingerprint_content(getattr(instance, name)) for name in kept}


def references(instance: Any) -> dict[str, tuple[str, str]]:
    """{field name: (reference, artifact)} of a dataclass's reference fields that are given."""
    rules = {field.name: rule_of(field).artifact for field in dataclasses.fields(instance)}
    given = {name: getattr(instance, name) for name, artifact in rules.items() if artifact}
    return {name: (value, rules[name]) for name, value in given.items() if value}


def nearest(word: Any, choices: Iterable[str]) -> str:
    """A hint such as "; did you mean 'steps'?", or the list of choices when nothing is near."""
    choices = [str(choice) for choice in choices]
    match = difflib.get_close_matches(str(word), choices, n=1, cutoff=0.5)
    if match:
        return f"; did you mean {match[0]!r}?"
    return f"; choose one of: {', '.join(sorted(choices))}" if choices else ""


def renamed(key: str) -> str | None:
    """The dotted key that replaces an old one (RENAMED); None for any other key."""
    new = _new_name(tuple(key.split(".")))
    return new and _join(key.rpartition(".")[0], new)


def versioned(plain: dict) -> dict:
    """`plain` as it is written to a file: its schema number first."""
    return {"schema": SCHEMA} | plain


def upgrade(plain: Any, at: str = "") -> dict:
    """What a file that `versioned` wrote (or an older one) holds, without its schema number and in the keys of today.

    at: its place in a configuration, such as "models.*". Raises UserError for no mapping, or one of a newer version.
    """
    if not isinstance(plain, dict):
        raise UserError(f"expected a mapping, found {plain!r:.60}")
    number = plain.get("schema", 1)
    content = {key: value for key, value in plain.items() if key != "schema"}
    if type(number) is not int or not 1 <= number <= SCHEMA:
        raise UserError(f"schema: {number!r}; this version reads up to {SCHEMA}, use the one that wrote the file")
    return content if number == SCHEMA else _upgraded(content, tuple(at.split(".")) if at else ())


def _upgraded(value: Any, place: tuple[str, ...]) -> Any:
    if not isinstance(value, dict):
        return value
    value = {_new_name((*place, str(k))) or k: _upgraded(v, (*place, str(k))) for k, v in value.items()}
    return _data_set(value) if _fits(place, ("data", "sets", "*")) else value


def _data_set(old: dict) -> dict:
    """An entry of data.sets without the keys of other sources; a `path` that names a stage becomes a `stage`."""
    source = old.get("source", "records")
    dropped = _OTHER_SOURCES.get(source, _OTHER_SOURCES[""])
    new = {"source": source} | {key: value for key, value in old.items() if key not in dropped}
    path = new.get("path")
    if source == "records" and path and "/" not in path and not path.endswith((".safetensors", ".jsonl")):
        del new["path"]
        new |= {"source": "stage", "stage": path}
    return new


def _new_name(place: tuple[str, ...]) -> str | None:
    return next((new for pattern, new in _RENAMED.items() if _fits(place, pattern)), None)


def _fits(place: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    return len(place) == len(pattern) and all(a == b or "*" in (a, b) for a, b in zip(place, pattern, strict=True))


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
