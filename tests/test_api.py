"""The public API: the examples of mindspore_impl/README.md run as they stand there, and user errors are UserErrors."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mindspore_impl as pangu

PACKAGE = Path(pangu.__file__).parent
EXAMPLES = re.findall(r"^```python\n(.*?)^```", (PACKAGE / "README.md").read_text(encoding="utf-8"), re.M | re.S)
FACTS = """
import json
from mindspore_impl.losses.oracle import objective as oracle

weights = np.full(3, 1 / 3)
expected = {
    name: oracle(*arrays[:2], weights, *arrays[2:], pangu.ObjectiveOptions(kd_weight=weight, divergence=name))
    for name, weight in (("jsd", 0.5), ("total_variation", 1.0))
}
facts = {
    "trained": trained,
    "distilled": distilled,
    "records": [len(records), counted["records"], [record.id for record in pairs]],
    "turns": len(conversation.messages),
    "positions": [store.positions, batches.summary()["supervised"]],
    "errors": [
        [abs(one.loss - other.loss), float(np.abs(one.gradient_NV - other.grad_NV).max())]
        for one, other in zip((found, own), expected.values())
    ],
    "template": [tokenizer.template.name, short.template.name],
    "student": [student.options.hidden_size, sorted(path.name for path in Path("student").iterdir())],
}
Path("facts.json").write_text(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """All examples, one after the other in one process, and what they left."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "page.py").write_text("\n".join([*EXAMPLES, FACTS]), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "page.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return json.loads((folder / "facts.json").read_text())


def test_examples_are_short():
    assert len(EXAMPLES) > 12
    for example in EXAMPLES:
        lines = [line for line in example.splitlines() if line.strip()]
        assert len(lines) <= 10, example


def test_examples_train_and_distil(facts):
    trained, distilled = facts["trained"], facts["distilled"]
    assert trained["steps"] == distilled["steps"] == 12
    before, after = (trained[f"validation_{when}"]["new"]["loss"] for when in ("before", "after"))
    assert after < 0.8 * before
    assert distilled["kd"] > 0 and len(set(facts["positions"])) == 1


def test_examples_leave_what_they_promise(facts):
    assert facts["records"] == [30, 120, ["pairs.jsonl:1", "greeting 0", "greeting 1"]] and facts["turns"] == 2
    assert facts["template"] == ["pangu", "short"]
    assert facts["student"] == [32, ["config.json", "model.safetensors", "tokenizer.model"]]


def test_loss_on_arrays_equals_the_oracle(facts):
    assert np.max(facts["errors"]) < 1e-5


def test_every_name_is_exported():
    assert set(pangu.__all__) <= set(dir(pangu))
    with pytest.raises(AttributeError, match="nothing"):
        pangu.nothing  # noqa: B018


def test_every_example_uses_only_exported_names_and_all_of_them():
    used = set(re.findall(r"\bpangu\.(\w+)", "".join(EXAMPLES)))
    assert used <= set(pangu.__all__)
    assert set(pangu.__all__) - used == {"JobFailed", "option"}


def test_functions_document_every_argument():
    functions = {name: getattr(pangu, name) for name in pangu.__all__ if inspect.isfunction(getattr(pangu, name))}
    assert len(functions) > 20
    for name, function in functions.items():
        page, parameters = inspect.getdoc(function), inspect.signature(function).parameters
        pattern = r"\n    {}: " if len(parameters) > 4 else r"\b{}\b"
        assert [key for key in parameters if not re.search(pattern.format(key), page)] == [], name
        assert "Raises" in page or name in {"option", "register_file_source", "register_source", "stage_kind"}, name


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from mindspore_impl.text.tokenizer import train_tokenizer

    return train_tokenizer(["list a b c apply reverse sort"] * 20, tmp_path_factory.mktemp("t") / "tokenizer.model", 60)


SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture(scope="module")
def model(ms_runtime, tokenizer):
    return pangu.new_model(pangu.ModelOptions(vocab_size=tokenizer.vocab_size, num_hidden_layers=1, **SIZES))


ERRORS = {
    "device": lambda model, tokenizer: pangu.setup(device="GPU"),
    "threads": lambda model, tokenizer: pangu.setup(threads=-1),
    "vocab_size": lambda model, tokenizer: pangu.new_model(pangu.ModelOptions()),
    "gone": lambda model, tokenizer: pangu.load_model("gone"),
    "gone.json": lambda model, tokenizer: pangu.load_tokenizer("gone.json"),
    "records.jsonl": lambda model, tokenizer: pangu.read_records("records.jsonl"),
    "source": lambda model, tokenizer: pangu.read_records("records.jsonl", source="parquet"),
    "cuont": lambda model, tokenizer: pangu.read_records("records.jsonl", cuont=2),
    "thinking": lambda model, tokenizer: pangu.generate(model, tokenizer, ["a"], thinking="slow"),
    r"prompts\[1\]": lambda model, tokenizer: pangu.generate(model, tokenizer, ["a", [{"role": "user"}]]),
    r"prompts\[0\]": lambda model, tokenizer: pangu.generate(model, tokenizer, ["a\0"]),
    "the system turn": lambda model, tokenizer: pangu.chat(model, tokenizer, system="\ud83d"),
    "top_p": lambda model, tokenizer: pangu.generate(model, tokenizer, ["a"], pangu.SamplingOptions(top_p=2.0)),
    "context": lambda model, tokenizer: pangu.chat(model, tokenizer, context=1),
    "overlong": lambda model, tokenizer: pangu.make_batches([], tokenizer, pangu.BatchOptions(overlong="cut")),
    "select": lambda model, tokenizer: pangu.train(
        pangu.TrainingJob(model=model, stream=None, options=pangu.TrainOptions(select="worst"), folder=None, steps=1)
    ),
    "top_k": lambda model, tokenizer: pangu.capture(model, tokenizer, [], "out", pangu.CaptureOptions(top_k=0)),
    "manifest.json": lambda model, tokenizer: pangu.open_store("."),
    "model_type": lambda model, tokenizer: pangu.save_model(model, tokenizer, "out", model_type="qwen9"),
    "dtype": lambda model, tokenizer: pangu.save_model(model, tokenizer, "out", dtype="int4"),
    "sweep": lambda model, tokenizer: pangu.run(pangu.compose(["sweep=paper_ablation"])),
}


@pytest.mark.parametrize("key", ERRORS)
def test_user_errors_name_the_key(key, model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pangu.UserError, match=key):
        ERRORS[key](model, tokenizer)
    assert not list(tmp_path.iterdir())


def test_a_run_of_several_workers_is_launched(monkeypatch, tmp_path):
    launched = []
    monkeypatch.setattr("mindspore_impl.curriculum.launch.spawn", lambda config, _: launched.append(config))
    config = pangu.compose(["experiment=rehearsal", "runtime.workers=2", f"run_dir={tmp_path / 'run'}"])
    assert pangu.run(config) == tmp_path / "run"
    assert launched == [config]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: np.zeros(5)}, "axes"),
        ({1: [1, 2, 3]}, "fit"),
        ({2: [[1, 2]]}, "fit"),
        ({4: [0.0]}, "fit"),
        ({1: [1, 5]}, "target_ids_N"),
        ({2: [[1, 2], [3, -2]]}, "teacher_ids_NK"),
        ({2: [[1, 2], [3, 3]]}, "teacher_ids_NK"),
        ({5: pangu.ObjectiveOptions(divergence="kl")}, "divergence"),
    ],
)
def test_loss_refuses_arrays_that_do_not_fit(change, message):
    teacher = [[1, 2], [3, -1]], np.log([[0.5, 0.4], [0.9, 1e-9]]), np.log([0.1, 0.1])
    arguments = [np.zeros((2, 5)), [1, 2], *teacher, pangu.ObjectiveOptions(kd_weight=0.5)]
    for position, value in change.items():
        arguments[position] = value
    with pytest.raises(pangu.UserError, match=message):
        pangu.distillation_loss(*arguments)


def test_generation_is_kept_with_the_model(model, tokenizer):
    """Compiled graphs are reused, follow the weights, and leave the model's parameters alone."""
    names = [parameter.name for parameter in model.get_parameters()]
    sampling = pangu.SamplingOptions(temperature=0.0, max_new_tokens=4)
    first = pangu.generate(model, tokenizer, ["list a b"], sampling)
    engine = model.kept_engine
    assert pangu.generate(model, tokenizer, [[{"role": "user", "content": "list a b"}]], sampling) == first
    assert model.kept_engine is engine
    assert [parameter.name for parameter in model.get_parameters()] == names
