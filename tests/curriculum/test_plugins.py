"""Stage kinds, divergences, sources, verifiers and templates from a folder outside the repository."""

import dataclasses
import sys
import textwrap

import pytest

from mindspore_impl import files
from mindspore_impl.curriculum import configuration, plugins, runner
from mindspore_impl.curriculum.plan import make_plan
from mindspore_impl.curriculum.stages import KINDS
from mindspore_impl.errors import UserError
from mindspore_impl.schema import to_plain

KIND = '''
"""Counts the words of a data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from mindspore_impl import files
from mindspore_impl.curriculum.stages import Stage, stage_kind
from mindspore_impl.schema import option


@stage_kind
@dataclass(kw_only=True)
class CountWords(Stage):
    """How many words the records of a set have."""

    kind: Literal["count_words"] = "count_words"
    set: str = ""  # the data set
    at_least: int = option(0, low=0)  # words

    outputs: ClassVar[tuple[str, ...]] = ("words.json",)

    def data_sets(self, key, shared):
        return [(f"{key}.set", self.set)]

    def problems(self, key, shared):
        if self.at_least > 10**6:
            yield f"{key}.at_least: {self.at_least} is more than any set has"

    def work(self):
        return f"words of {self.set}"

    def run(self, context, planned, folder: Path):
        if (folder / "stop").exists():
            raise KeyboardInterrupt
        words = sum(len(m.content.split()) for record in context.records(self.set) for m in record.messages)
        files.write_json(folder / "words.json", {"words": words})
        return {"words": words}
'''
EXPERIMENT = """
# @package _global_
defaults: [quickstart]
name: counted
plugins: [{module}]
order: [words]
compare: []
data: {{sets: {{reasoning: {{count: 30}}, fast: {{count: 30}}}}}}
tokenizer: {{vocab_size: 100}}
stages:
  words: {{kind: count_words, set: reasoning}}
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder with a plugin and its experiment; what it registers is forgotten afterwards. -> (experiment, module)."""
    module = f"toy_stage_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / "my lab"
    folder.mkdir()
    (folder / f"{module}.py").write_text(KIND)
    (folder / "mine.yaml").write_text(EXPERIMENT.format(module=module).lstrip())
    monkeypatch.setattr(plugins, "_loaded", dict(plugins.loaded()))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in KINDS:
        monkeypatch.setitem(KINDS, name, KINDS[name])
    yield folder / "mine.yaml", module
    KINDS.pop("count_words", None)
    sys.modules.pop(module, None)


def compose(experiment, *overrides):
    return configuration.compose([f"experiment={experiment}", *overrides])


def test_a_stage_kind_from_outside_runs_resumes_is_cached_and_reported(lab, tmp_path, ms_runtime, capsys):
    experiment, module = lab
    run_dir = tmp_path / "run"
    config = compose(experiment, f"runtime.cache={tmp_path / 'cache'}", f"run_dir={run_dir}")
    runner.print_plan(config)
    assert "words of reasoning" in capsys.readouterr().out
    stage = run_dir / "stages" / "01_words"
    stage.mkdir(parents=True)
    (stage / "stop").touch()
    (run_dir / "config.yaml").write_text("name: counted\n")
    with pytest.raises(KeyboardInterrupt):
        runner.run(config)
    (stage / "stop").unlink()
    assert files.read_json(stage / "stage.json")["status"] == runner.RUNNING
    runner.run(config)
    assert files.read_json(stage / "stage.json")["metrics"]["words"] > 30
    runner.run(config)
    assert "finished before, skipped" in capsys.readouterr().out
    runner.run(dataclasses.replace(config, run_dir=str(tmp_path / "again")))
    assert "taken from the cache" in capsys.readouterr().out
    page = (run_dir / "report.html").read_text()
    assert "count_words" in page
    assert files.read_json(run_dir / "metrics.json")["stages"][0]["kind"] == "count_words"


def test_the_source_of_a_plugin_is_part_of_the_fingerprint(lab, monkeypatch):
    experiment, module = lab
    before = make_plan(compose(experiment))[0].fingerprint
    path = experiment.with_name(f"{module}.py")
    path.write_text(path.read_text() + "\n# changed\n")
    plugins._loaded.pop(module)
    assert make_plan(compose(experiment))[0].fingerprint != before


def test_a_run_knows_where_its_plugins_were_found(lab, monkeypatch, tmp_path):
    experiment, module = lab
    path = list(sys.path)
    files.write_text(tmp_path / "run" / "config.yaml", configuration.to_yaml(compose(experiment)))
    plugins._loaded.pop(module)
    del sys.modules[module]
    monkeypatch.setattr(sys, "path", [each for each in path if each != str(experiment.parent)])
    configuration.reopen(tmp_path / "run", [module])
    assert module in plugins.loaded()


def test_problems_and_keys_of_an_outside_kind_are_checked_like_ours(lab):
    experiment, _ = lab
    plain = to_plain(compose(experiment))
    for key, value, named in (
        ("at_least", 2000000, "stages.words.at_least"),
        ("at_leest", 1, "'at_least'"),
        ("at_least", -1, "stages.words.at_least"),
        ("set", "reasonin", "stages.words.set"),
    ):
        stage = plain["stages"]["words"] | {key: value}
        with pytest.raises(UserError, match=named):
            make_plan(configuration.validate(plain | {"stages": {"words": stage}}))


def test_reopening_a_run_imports_nothing_unless_it_is_named(lab, tmp_path, monkeypatch):
    experiment, module = lab
    files.write_text(tmp_path / "run" / "config.yaml", configuration.to_yaml(compose(experiment)))
    plugins._loaded.pop(module)
    del sys.modules[module], KINDS["count_words"]
    monkeypatch.setattr(sys, "path", sys.path[:-1])
    with pytest.raises(UserError, match=f"--plugins {module}"):
        configuration.reopen(tmp_path / "run")
    assert module not in sys.modules
    monkeypatch.chdir(experiment.parent)
    assert configuration.reopen(tmp_path / "run", [module]).stages["words"].kind == "count_words"


@pytest.mark.parametrize("source", ["import nothing_of_this_name", "1 / 0"])
def test_a_plugin_that_cannot_be_imported_is_named(tmp_path, monkeypatch, source):
    (tmp_path / "broken_plugin.py").write_text(textwrap.dedent(source))
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UserError, match="broken_plugin"):
        plugins.load(["broken_plugin"], [tmp_path])


OTHERS = '''
"""A divergence, a source, a verifier and a template."""

import dataclasses

import numpy as np
from mindspore import nn, ops

from mindspore_impl.data.answers import register_verifier
from mindspore_impl.data.options import DatasetOptions
from mindspore_impl.data.sources import register_source
from mindspore_impl.losses.divergences import register_divergence
from mindspore_impl.text.records import Message, Record
from mindspore_impl.text.template import CHATML, register_template


class Squares(nn.Cell):
    def construct(self, log_p, log_q):
        return ops.square(ops.exp(log_p) - ops.exp(log_q)).sum(-1)


register_divergence("lab_squares", oracle=lambda p, q: float(((np.exp(p) - np.exp(q)) ** 2).sum()), cell=Squares)
register_template(dataclasses.replace(CHATML, name="lab_template"))
register_verifier("lab_task", expected=lambda record: record.meta["answer"])


@dataclasses.dataclass(kw_only=True)
class Numbers(DatasetOptions):
    source: str = "lab_numbers"
    start: int = 0  # the first number


@register_source("lab_numbers", Numbers)
def numbers(options, seed):
    for n in range(options.start, options.start + options.count):
        messages = (Message("user", str(n)), Message("assistant", str(n + 1)))
        yield Record(str(n), messages, "fast", {"task": "lab_task", "answer": str(n + 1)})
'''


def test_divergence_source_verifier_and_template_come_from_outside(tmp_path, monkeypatch):
    from mindspore_impl.data import answers, sources
    from mindspore_impl.losses import divergences
    from mindspore_impl.text import template

    (tmp_path / "lab_others.py").write_text(OTHERS)
    (tmp_path / "others.yaml").write_text(
        "# @package _global_\ndefaults: [quickstart]\nname: others\nplugins: [lab_others]\n"
        "data: {sets: {mine: {source: lab_numbers, start: 5, count: 3}}}\n"
        "stages: {distill_fast: {objective: {divergence: lab_squares}}}\n"
    )
    for registry, name in (
        (answers.VERIFIERS, "lab_task"),
        (sources.SOURCES, "lab_numbers"),
        (divergences._registry, "lab_squares"),
        (template.TEMPLATES, "lab_template"),
    ):
        monkeypatch.setitem(registry, name, None)  # so that it is forgotten afterwards
        del registry[name]
    monkeypatch.setattr(plugins, "_loaded", dict(plugins.loaded()))
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = configuration.compose([f"experiment={tmp_path / 'others.yaml'}", "tokenizer.train_on=[reasoning,mine]"])
    plan = {planned.name: planned for planned in make_plan(config)}
    assert "composed" in plan["distill_fast"].stage.work()
    records = sources.load_set("mine", config.data.sets["mine"], 0)
    assert [record.messages[0].content for record in records] == ["5", "6", "7"]
    assert answers.label_correct(records[0])
    assert template.find_template("lab_template").name == "lab_template"
