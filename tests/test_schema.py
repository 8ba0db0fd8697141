"""Building dataclasses from plain data, field metadata, and reading what older versions wrote."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mindspore_impl import schema
from mindspore_impl.curriculum.configuration import compose, validate
from mindspore_impl.errors import UserError
from mindspore_impl.report.run_files import read_config
from mindspore_impl.schema import Kinds, build, option

OLD_RUN = Path(__file__).parent / "old_run"


@dataclass
class Inner:
    rate: float = option(0.5, above=0)
    shares: list[float] = option(default_factory=list, low=0, high=1)
    logged: int = option(1, fingerprint=False, low=1)


@dataclass
class Animal:
    kind: str


@dataclass
class Dog(Animal):
    bark: int | None = option(None, low=1)
    home: str | None = option(None, artifact="store")


@dataclass
class Cat(Animal):
    lives: int = 9


@dataclass
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    animals: dict[str, Animal] = field(default_factory=dict)
    colour: str = option("red", choices=lambda: COLOURS)
    weights: dict[str, float] = option(default_factory=dict, low=0)


COLOURS = ["red", "green"]
KINDS = {Animal: Kinds("kind", {"dog": Dog, "cat": Cat})}


def refusal(plain) -> str:
    with pytest.raises(UserError) as caught:
        build(Outer, plain, "zoo", KINDS)
    return str(caught.value)


def test_a_mapping_becomes_the_dataclass_that_its_tag_names():
    plain = {"name": "x", "animals": {"rex": {"kind": "dog", "bark": 2}, "tom": {"kind": "cat"}}, "weights": {"a": 1}}
    built = build(Outer, plain, "", KINDS)
    assert built.animals == {"rex": Dog("dog", 2), "tom": Cat("cat")} and type(built.weights["a"]) is float
    assert build(Outer, schema.to_plain(built), "", KINDS) == built
    assert build(Animal, {"kind": "cat", "lives": 3}, "", KINDS) == Cat("cat", 3)


@pytest.mark.parametrize(("plain", "named"), [
    ([], ["zoo", "a mapping"]),
    ({}, ["zoo.name", "no value given"]),
    ({"name": 1, "inner": {"rat": 1}}, ["zoo.name", "zoo.inner.rat", "'rate'"]),  # both at once
    ({"name": "x", "inner": {"shares": [0.5, "a"]}}, ["zoo.inner.shares[1]", "'a'"]),
    ({"name": "x", "animals": {"a": {}}}, ["zoo.animals.a", "kind", "dog, cat"]),
    ({"name": "x", "animals": {"a": {"kind": "dgo"}}}, ["zoo.animals.a.kind", "'dog'"]),
    ({"name": "x", "animals": {"a": {"kind": "cat", "bark": 1}}}, ["zoo.animals.a.bark", "dog", "~zoo.animals.a.bark"]),
    ({"name": "x", "animals": {"a": {"kind": "cat", "live": 1}}}, ["zoo.animals.a.live", "'lives'"]),
    ({"name": "x", "colour": "gren"}, ["zoo.colour", "'green'"]),
])  # fmt: skip
def test_every_problem_names_its_key_and_what_was_meant(plain, named):
    text = refusal(plain)
    assert all(word in text for word in named), text


def test_choices_are_read_when_a_value_is_checked(monkeypatch):
    assert "zoo.colour" in refusal({"name": "x", "colour": "blue"})
    monkeypatch.setitem(globals(), "COLOURS", ["blue"])
    assert build(Outer, {"name": "x", "colour": "blue"}, "").colour == "blue"


@pytest.mark.parametrize(("changes", "keys"), [
    ({}, []),
    ({"inner": Inner(rate=0)}, ["inner.rate"]),
    ({"inner": Inner(rate=float("nan"))}, ["inner.rate"]),
    ({"inner": Inner(shares=[0, 1, 1.5])}, ["inner.shares[2]"]),
    ({"animals": {"a": Dog("dog", 0), "b": Dog("dog", None)}}, ["animals.a.bark"]),
    ({"weights": {"a": -1.0, "b": 0.0}, "inner": Inner(logged=0)}, ["inner.logged", "weights.a"]),
])  # fmt: skip
def test_range_problems_name_each_number_out_of_bounds(changes, keys):
    assert [text.split(":")[0] for text in schema.range_problems(Outer("x", **changes))] == keys
    assert all(text.startswith("zoo.") for text in schema.range_problems(Outer("x", **changes), "zoo"))


def test_a_fingerprint_leaves_out_logging_and_references():
    content = schema.fingerprint_content(Outer("x", animals={"a": Dog("dog", 2, "elsewhere")}))
    assert content["inner"] == {"rate": 0.5, "shares": []}
    assert content["animals"] == {"a": {"kind": "dog", "bark": 2}}
    assert schema.references(Dog("dog", 2, "elsewhere")) == {"home": ("elsewhere", "store")}
    assert schema.references(Dog("dog")) == schema.references(Dog("dog", home="")) == {}


@pytest.mark.parametrize(("old", "new"), [
    ("models.student.num_layers", "models.student.num_hidden_layers"),
    ("stages.sft_fast.train.steps", "stages.sft_fast.train.max_steps"),
    ("data.sets.fast.first", "data.sets.fast.skip"),
])  # fmt: skip
def test_an_old_name_is_refused_with_the_new_one(old, new):
    with pytest.raises(UserError, match=f"{old}: .*{new}"):
        compose([f"{old}=3"])
    assert schema.renamed(old) == new and schema.renamed(new) is None


def test_the_config_of_an_old_run_is_read_in_todays_keys(tmp_path):
    shutil.copy(OLD_RUN / "config.yaml", tmp_path)
    found, _ = read_config(tmp_path)
    assert "schema" not in found
    assert found["models"]["student"]["num_key_value_heads"] == 2 and found["models"]["student"]["tie_word_embeddings"]
    stage = found["stages"]["sft_reasoning"]
    assert stage["data"]["gradient_accumulation_steps"] == 1 and stage["optimizer"]["lr_scheduler_type"] == "cosine"
    assert (stage["train"]["max_steps"], stage["train"]["save_total_limit"]) == (500, 2)
    assert found["stages"]["shuffled"]["lora"] == {"r": 8, "lora_alpha": 16.0, "target_modules": ["q_proj", "v_proj"]}
    sets = found["data"]["sets"]
    assert sets["reasoning"]["skip"] == 20000 and "path" not in sets["reasoning"]
    assert sets["scored"] == {"source": "stage", "stage": "score", "thinking": "fast", "skip": 0, "count": None,
                              "keep": None}  # fmt: skip
    assert sets["solutions"]["path"] == "train.jsonl" and "noise" not in sets["solutions"]
    config = validate(found)
    assert config.data.sets["scored"].stage == "score" and config.stages["shuffled"].lora.r == 8


def test_what_is_written_today_is_read_as_it_is_and_a_newer_file_is_refused():
    plain = {"name": "x", "models": {"student": {"num_layers": 2}}}
    written = schema.versioned(plain)
    assert list(written)[0] == "schema" and schema.upgrade(written) == plain
    with pytest.raises(UserError, match="schema"):
        schema.upgrade({"schema": schema.SCHEMA + 1})


def test_a_part_is_upgraded_as_what_stands_at_its_place():
    assert schema.upgrade({"rank": 1, "base": "x"}, "stages.*.lora") == {"r": 1, "base": "x"}
    assert schema.upgrade({"a": {"first": 1, "noise": 0.5, "source": "gsm8k"}}, "data.sets")["a"]["skip"] == 1
