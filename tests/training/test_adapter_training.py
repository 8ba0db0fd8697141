"""A stage that trains adapters: the base stays bit for bit, checkpoints hold the pairs alone, resuming is exact."""

import json

import numpy as np
import pytest

from mindspore_impl import checkpoint
from mindspore_impl.errors import UserError
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.model.options import LoraOptions
from mindspore_impl.training.options import OptimizerOptions, TrainOptions
from tests.training.small import Stream, batch, tiny_model, weights

LORA = LoraOptions(r=2, lora_alpha=8.0, target_modules=["q_proj", "o_proj", "up_proj"])
OPTIONS = TrainOptions(logging_steps=1, save_steps=2, eval_steps=2, select="best", tensorboard=False)
VALIDATION = {"held": [batch(90, weight=1.0)]}
STEPS = 6


def adapted(seed=1):
    """A model with new adapters on the weights of tiny_model(0)."""
    from mindspore import Tensor

    from mindspore_impl.model.lora import with_adapters

    base = tiny_model(0)
    model, values = with_adapters(base.options, LORA, seed), weights(base)
    for parameter in model.get_parameters():
        if parameter.name in values:
            parameter.set_data(Tensor(values[parameter.name]))
    return model


def run(folder, stream, base_sha256="b" * 64, options=OPTIONS):
    from mindspore_impl.model.adapter_file import Adapters
    from mindspore_impl.training.trainer import TrainingJob, train

    model = adapted()
    optimizer, adapters = OptimizerOptions(learning_rate=0.05), Adapters(LORA, base_sha256)
    job = (model, stream, VALIDATION, ObjectiveOptions(), optimizer, options, folder, STEPS)
    result = train(TrainingJob(*job, adapters=adapters))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return model, result, [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, ms_runtime):
    folder = tmp_path_factory.mktemp("whole")
    return folder, *run(folder, Stream())


def test_the_base_stays_and_the_pairs_learn(whole):
    folder, model, result, lines = whole
    start, trained = adapted(), weights(model)
    for parameter in start.get_parameters():
        same = np.array_equal(trained[parameter.name], parameter.asnumpy())
        assert same == (not parameter.requires_grad), parameter.name
    assert result["validation_after"]["held"]["loss"] < result["validation_before"]["held"]["loss"]
    assert lines[1]["grad_norm"] > 0


def test_checkpoints_hold_the_pairs_and_their_state_alone(whole):
    folder, model, _, _ = whole
    found = checkpoint.latest(folder / "checkpoints")
    names = {parameter.name for parameter in model.trainable_params()}
    assert set(checkpoint.read_arrays(found.weights_path)) == names and len(names) == 2 * 3
    state = checkpoint.read_arrays(found.optimizer_path)
    assert set(state) == {f"adam_{kind}.{name}" for kind in "mv" for name in names} | {"global_step"}


def test_a_killed_run_resumes_bit_for_bit(whole, tmp_path):
    _, model, result, lines = whole
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Stream(raise_at=3))
    stream = Stream()
    again, resumed, relines = run(tmp_path, stream)
    assert stream.asked == [2, 3, 4, 5]
    assert relines == lines and resumed["selected_step"] == result["selected_step"]
    for name, array in weights(model).items():
        np.testing.assert_array_equal(weights(again)[name], array, err_msg=name)


def test_the_best_pairs_are_handed_on(tmp_path, ms_runtime, monkeypatch):
    from mindspore_impl.training import trainer

    left, at_step = iter([9.0, 3.0, 1.0, 2.0]), {}

    def validate(self):
        at_step[self.progress.step] = weights(self.job.model)
        return {"held": {"loss": next(left), "perplexity": 1.0, "tokens": 5}}

    monkeypatch.setattr(trainer._Session, "validate", validate)
    model, result, _ = run(tmp_path, Stream())
    assert result["selected_step"] == 4
    for name, array in weights(model).items():
        np.testing.assert_array_equal(array, at_step[4][name], err_msg=name)
    assert any(not np.array_equal(at_step[4][name], at_step[6][name]) for name in at_step[4])


def test_adapters_of_another_base_are_not_resumed(whole, ms_runtime):
    with pytest.raises(
        UserError, match=r"weights.safetensors: it is not of this stage's adapters or not of their base"
    ):
        run(whole[0], Stream(), base_sha256="c" * 64)
    from mindspore_impl.training.trainer import TrainingJob, train

    with pytest.raises(UserError, match="it is not of this stage's adapters"):
        plain = tiny_model(0), Stream(), VALIDATION, ObjectiveOptions(), OptimizerOptions(), OPTIONS, whole[0], STEPS
        train(TrainingJob(*plain))
