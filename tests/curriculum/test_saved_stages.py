"""What a training stage leaves says what model it is of, and a stage without memory says what to lower."""

import dataclasses

import numpy as np
import pytest

from mindspore_impl import checkpoint
from mindspore_impl.curriculum import runner
from mindspore_impl.curriculum.plan import make_plan
from mindspore_impl.curriculum.stages import KINDS
from mindspore_impl.curriculum.stages.context import RunContext, prepare_tokenizer
from mindspore_impl.errors import UserError
from mindspore_impl.model.hf_config import options_of
from mindspore_impl.model.pangu import parameter_shapes
from tests.curriculum.conftest import compose_quickly, stage_file


@pytest.fixture(scope="module")
def context(tmp_path_factory, ms_runtime):
    run_dir = tmp_path_factory.mktemp("run")
    small = [f"data.sets.{name}.count=60" for name in ("teacher_reasoning", "teacher_fast", "reasoning", "fast")]
    composed = compose_quickly(f"run_dir={run_dir}", "tokenizer.vocab_size=110", *small)
    context = RunContext(composed, run_dir, {planned.name: planned for planned in make_plan(composed)})
    context.tokenizer = prepare_tokenizer(context)
    return context


def trained(context, monkeypatch, **changes):
    """What a stage of the run hands to the trainer as config."""
    given = {}
    monkeypatch.setattr("mindspore_impl.training.trainer.train", lambda job: given.update(vars(job)) or {})
    planned = next(each for each in context.plan.values() if each.kind == "sft" and each.stage.init is None)
    for name, value in changes.items():
        monkeypatch.setattr(context.config.models[planned.model], name, value)
    planned.stage.run(context, planned, context.run_dir)
    return given["config"], context.model_options(planned.model)


def test_a_checkpoint_of_a_run_opens_by_its_path_alone(context, monkeypatch, tmp_path):
    described, options = trained(context, monkeypatch)
    assert described["eos_token_id"] == context.tokenizer.eos_id
    arrays = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(options).items()}
    found = checkpoint.save(tmp_path, 3, arrays, {}, {}, 1, config=described)
    for path in (tmp_path, found.path):
        source = checkpoint.open_weights(path)
        assert source.config == described and parameter_shapes(source.options) == parameter_shapes(options)
    assert options_of(described, "here").num_key_value_heads == options.num_key_value_heads


def test_a_model_that_no_config_describes_is_trained_without_one(context, monkeypatch):
    assert trained(context, monkeypatch, o_bias=False)[0] is None


def test_a_stage_out_of_memory_is_told_and_goes_on_later(context, monkeypatch, tmp_path):
    def fail(*_):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(KINDS["sft"], "run", fail)
    monkeypatch.setattr(runner, "_write_report", lambda run_dir: None)
    with pytest.raises(UserError, match=r"9 GiB.*stages\.\w+\.data\.gradient_accumulation_steps"):
        runner.run(dataclasses.replace(context.config, run_dir=str(tmp_path / "run")))
    assert stage_file(tmp_path / "run", next(iter(context.plan)))["status"] == runner.RUNNING
