"""A stage that trains adapters: the base stays bit for bit, checkpoints hold the pairs alone, resuming is exact."""

import numpy as np
import pytest

from mindspore_impl import checkpoint
from mindspore_impl.errors import UserError
from mindspore_impl.model.options import LoraOptions
from mindspore_impl.training.options import OptimizerOptions, TrainOptions
from tests.training.small import Stream, batch, equal, lines, tiny_model, weights

LORA = LoraOptions(r=2, lora_alpha=8.0, target_modules=["q_proj", "o_proj", "up_proj"])
OPTIONS = TrainOptions(logging_steps=1, save_steps=2, eval_steps=2, select="best", tensorboard=False)
VALIDATION = {"held": [batch(90, weight=1.0)]}
STEPS = 6


@pytest.fixture
def run(graphs, monkeypatch):
    """run(folder, stream[, base_sha256]): train the adapters; -> weights, result, lines."""
    graphs.use(monkeypatch, linear=False)
    return lambda *settings: train_adapters(graphs, *settings)


def train_adapters(graphs, folder, stream, base_sha256="b" * 64):
    from mindspore_impl.model.adapter_file import Adapters
    from mindspore_impl.training.trainer import TrainingJob, train

    model = start(graphs)
    job = TrainingJob(
        model=model, stream=stream, validation=VALIDATION, optimizer=OptimizerOptions(learning_rate=0.05),
        options=OPTIONS, folder=folder, steps=STEPS, adapters=Adapters(LORA, base_sha256),
    )  # fmt: skip
    result = train(job)
    return weights(model), result, lines(folder)


def start(graphs):
    """A model with new adapters on the weights of tiny_model(0)."""
    from mindspore_impl.model.lora import with_adapters
    from tests.training.shared_graphs import set_weights

    base = tiny_model(0)
    model = graphs.get("adapted", lambda: with_adapters(base.options, LORA, 1))
    set_weights(model, weights(with_adapters(base.options, LORA, 1)) | weights(base))
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory, graphs):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        graphs.use(patch, linear=False)
        return folder, *train_adapters(graphs, folder, Stream())


def test_the_base_stays_the_pairs_learn_and_checkpoints_hold_them_alone(whole, graphs):
    folder, trained, result, logged = whole
    names = set()
    for parameter in start(graphs).get_parameters():
        same = np.array_equal(trained[parameter.name], parameter.asnumpy())
        assert same == (not parameter.requires_grad), parameter.name
        names |= {parameter.name} if parameter.requires_grad else set()
    assert result["validation_after"]["held"]["loss"] < result["validation_before"]["held"]["loss"]
    assert logged[1]["grad_norm"] > 0
    found = checkpoint.latest(folder / "checkpoints")
    assert set(checkpoint.read_arrays(found.weights_path)) == names and len(names) == 2 * 3
    state = checkpoint.read_arrays(found.optimizer_path)
    assert set(state) == {f"adam_{kind}.{name}" for kind in "mv" for name in names} | {"global_step"}


def test_a_killed_run_resumes_bit_for_bit(whole, run, tmp_path):
    _, expected, result, logged = whole
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Stream(raise_at=3))
    stream = Stream()
    again, resumed, relines = run(tmp_path, stream)
    assert stream.asked == [2, 3, 4, 5]
    assert relines == logged and resumed["selected_step"] == result["selected_step"]
    equal(again, expected)


def test_the_best_pairs_are_handed_on(run, tmp_path, monkeypatch):
    from mindspore_impl.training import trainer

    left, at_step = iter([9.0, 3.0, 1.0, 2.0]), {}

    def validate(self):
        at_step[self.progress.step] = weights(self.job.model)
        return {"held": {"loss": next(left), "perplexity": 1.0, "tokens": 5}}

    monkeypatch.setattr(trainer._Session, "validate", validate)
    best, result, _ = run(tmp_path, Stream())
    assert result["selected_step"] == 4
    equal(best, at_step[4])
    assert any(not np.array_equal(at_step[4][name], at_step[6][name]) for name in at_step[4])


def test_adapters_of_another_base_are_not_resumed(whole, run):
    from mindspore_impl.training.trainer import TrainingJob, train

    with pytest.raises(UserError, match="weights.safetensors"):
        run(whole[0], Stream(), "c" * 64)
    plain = TrainingJob(model=tiny_model(0), stream=Stream(), validation=VALIDATION, folder=whole[0], steps=STEPS)
    with pytest.raises(UserError, match="weights.safetensors.*adapters"):
        train(plain)
