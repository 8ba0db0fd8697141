"""Register our model, objective, batches and training step as types that a mindformers YAML can name.

    register()                      # once, before mindformers builds anything
    Trainer(args="stage.yaml").train()

| in the YAML | type | is |
|---|---|---|
| model.model_config | PanguPosttrainConfig | the sizes of `ModelOptions`, weights to start from, the loss |
| model.arch | PanguPosttrainModel | the causal LM with its loss: columns -> (loss, metrics) |
| model.model_config.loss | PanguObjective | the keys of `ObjectiveOptions`, `with_teacher` |
| train_dataset_task | PanguPackedDataset | the packed batches of `data/batches.py`, with a teacher store or without |
| lr_schedule | PanguSchedule | the schedules of `training/schedule.py` |
| runner_wrapper | PanguTrainStep | the step of `training/step.py`: clipping, no update where a gradient is not finite |

Only this file and `training/` import mindformers (1.9.0, legacy models), and only when asked. The classes are made in
functions, because their bases are mindformers'.
"""

import difflib
import functools
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mindspore_impl import checkpoint, files, runtime
from mindspore_impl.data.options import ROLLOUTS, BatchOptions, DatasetOptions
from mindspore_impl.errors import UserError
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.schema import SCHEMA, build, nearest, upgrade
from mindspore_impl.text.options import TokenizerOptions
from mindspore_impl.text.tokenizer import check_tokenizer
from mindspore_impl.training.options import OptimizerOptions


@dataclass
class PackedData:
    """What `train_dataset.data_loader` holds: the data of one training stage.

    Exactly one of `max_steps` and `num_train_epochs` is given.
    """

    max_steps: int | None = None
    num_train_epochs: float | None = None
    seed: int = 0  # draws and order of the batches
    set_seed: int = 0  # of generated sets
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    sets: dict[str, DatasetOptions] = field(default_factory=dict)
    rollouts: str | None = None  # a rollout file, the mixture's set `rollouts`
    keep_truncated: bool = True  # of the rollouts
    store: str | None = None  # a teacher store
    batch: BatchOptions = field(default_factory=BatchOptions)


def register(options: runtime.RuntimeOptions | None = None) -> None:
    """Set the machine up and make our types known to mindformers. May be called again."""
    runtime.setup(options or runtime.RuntimeOptions())
    _register()


@functools.cache
def _register() -> None:
    from mindspore_impl.training.mindformers import import_mindformers

    import_mindformers("tools.register", "models", "core.loss", "core.lr", "wrapper", "dataset", "trainer")
    from mindformers.tools.register import MindFormerModuleType as Kind
    from mindformers.tools.register import MindFormerRegister

    config = _config_class()
    for cls, kind in (
        (config, Kind.CONFIG), (_model_class(config), Kind.MODELS), (_objective_class(), Kind.LOSS),
        (_step_class(), Kind.WRAPPER), (PanguPackedDataset, Kind.DATASET), (PanguSchedule, Kind.LR),
    ):  # fmt: skip
        MindFormerRegister.register_cls(cls, kind)


def train(path: Path, callbacks: list | None = None) -> None:
    """Train as the mindformers YAML `path` says, through mindformers' Trainer, with more of its callbacks if given.

    Raises UserError when the file is no YAML of a training with our types, or its weights are of another tokenizer.
    """
    if not path.is_file() or path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{path}: no such YAML file; write one with tools/train_mindformers.py write STAGE {path}")
    register()
    from mindformers import MindFormerConfig, Trainer
    from mindformers.core.context import build_context
    from mindformers.tools.logger import get_logger
    from mindspore import Callback

    config = MindFormerConfig(str(path), **_todays_keys(path))
    if not config.model or not config.train_dataset_task:
        raise UserError(f"{path}: holds no model or no train_dataset_task; it is not a training of mindformers")
    _check_tokenizer(config)
    config.context = MindFormerConfig(**{**(config.context or {}), **runtime.context()})
    build_context(config)  # before anything asks for mindformers' context, which would switch graph mode off

    class Reports(Callback):
        """Lets mindformers' logger, which is quiet while things are imported and built, report the training."""

        def on_train_begin(self, run_context):
            get_logger().setLevel(logging.INFO)

    Trainer(args=config, callbacks=[Reports(), *(callbacks or [])]).train()


def _check_tokenizer(config: dict) -> None:
    weights, read = (config["model"].get("model_config") or {}).get("weights"), "train_dataset.data_loader.tokenizer"
    path = functools.reduce(lambda part, key: part.get(key) or {}, read.split("."), config).get("path")
    if weights and path and (made_with := checkpoint.open_weights(weights, hashed=False).tokenizer_sha256):
        check_tokenizer(made_with, files.sha256_file(path), weights, f"name the file of theirs in {read}.path")


# Where a YAML holds our keys, and where the same keys stand in a configuration.
_PLACES = {
    ("model", "model_config", "model"): "models.*",
    ("lr_schedule",): "stages.*.optimizer",
    ("runner_wrapper",): "stages.*.optimizer",
    ("train_dataset", "data_loader"): "stages.*.train",
    ("train_dataset", "data_loader", "batch"): "stages.*.data",
    ("train_dataset", "data_loader", "sets"): "data.sets",
}


def _todays_keys(path: Path) -> dict:
    """The content of a YAML that `write_stage` wrote, or an older version of it, in the keys of today."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or "schema" in content:
        return upgrade(content)
    for (*outer, last), place in _PLACES.items():
        holder = functools.reduce(lambda part, key: part.get(key) or {}, outer, content)
        if isinstance(holder.get(last), dict):
            holder[last] = upgrade(holder[last], place)
    return content


def _refuse_typos(given, ours: tuple[str, ...], where: str) -> None:
    """mindformers adds keys of its own to what a YAML says, so only those that look like one of `ours` are faults."""
    for key in given:
        if difflib.get_close_matches(key, ours, n=1, cutoff=0.7):
            raise UserError(f"{where}.{key}: unknown key{nearest(key, ours)}")


def _config_class() -> type:
    from mindformers.models import PretrainedConfig

    class PanguPosttrainConfig(PretrainedConfig):
        """model.model_config: `model` (ModelOptions), `loss` (a LOSS), `weights`, and `seed` for random ones.

        weights: anything that a stage can start from.
        """

        model_type = "pangu_posttrain"

        def __init__(self, model=None, loss=None, weights=None, seed=0, **more):
            _refuse_typos(more, ("model", "loss", "weights", "seed"), "model_config")
            super().__init__(**more)
            self.model = build(ModelOptions, dict(model or {}), "model_config.model")
            self.loss, self.weights, self.seed = loss, weights, seed

    return PanguPosttrainConfig


def _model_class(config: type) -> type:
    from mindformers.core.loss import build_loss
    from mindformers.models import PreTrainedModel

    from mindspore_impl.model.pangu import PanguForCausalLM
    from mindspore_impl.model.weights import load_into

    class PanguPosttrainModel(PreTrainedModel):
        """construct(*columns of PanguPackedDataset) -> (loss, metrics_M) of its PanguObjective."""

        config_class = config

        def __init__(self, config):
            super().__init__(config, auto_prefix=False)  # parameters keep the published names
            model = PanguForCausalLM(config.model, config.seed, initialise=config.weights is None)
            if config.weights is not None:
                load_into(model, checkpoint.open_weights(config.weights))
            self.objective = build_loss(dict(config.loss), default_args={"model": model})

        @classmethod
        def can_generate(cls) -> bool:
            """No: mindformers' generation knows other models."""
            return False

        def construct(self, *columns):
            return self.objective(*columns)

    return PanguPosttrainModel


def _objective_class() -> type:
    from mindspore_impl.losses.objective import LossNetwork

    class PanguObjective(LossNetwork):
        """The objective over `model`, from the keys of ObjectiveOptions."""

        def __init__(self, model, with_teacher=False, **options):
            super().__init__(model, build(ObjectiveOptions, options, "model_config.loss"), with_teacher)

    return PanguObjective


def _step_class() -> type:
    import mindspore as ms

    from mindspore_impl.training.step import TrainStep

    class PanguTrainStep(TrainStep):
        """construct(*columns) -> (loss, overflow, loss scale, learning rate, gradient norm).

        The order is that of mindformers' callbacks; the scale is always 1.
        """

        def __init__(self, network, optimizer, max_grad_norm=1.0, **more):
            _refuse_typos(more, ("max_grad_norm",), "runner_wrapper")
            super().__init__(network, optimizer, float(max_grad_norm), runtime.world_size())
            self.unscaled = ms.Tensor(1.0, ms.float32)

        def construct(self, *columns):
            rate = self.optimizer.learning_rate
            if self.optimizer.dynamic_lr:
                rate = rate(self.optimizer.global_step).reshape(())
            loss, metrics_M, gradients = self.differentiate(columns)
            report = self.update(loss, metrics_M, gradients)
            return report[0], report[2] == 0, self.unscaled, rate, report[1]

    return PanguTrainStep


class PanguSchedule:
    """Makes the LearningRateSchedule of `training/schedule.py` from the keys of OptimizerOptions that concern it."""

    def __new__(cls, total_steps, **options):
        """-> a schedule of `total_steps` updates."""
        from mindspore_impl.training.schedule import make_schedule

        return make_schedule(build(OptimizerOptions, options, "lr_schedule"), total_steps)


class PanguPackedDataset:
    """Makes a MindSpore data set of packed batches, a step an element."""

    def __new__(cls, dataset_config):
        """-> the data set that `dataset_config["data_loader"]` describes (see PackedData)."""
        from mindspore_impl.data.sources import set_kinds

        given = {key: value for key, value in dataset_config["data_loader"].items() if key != "type"}
        return packed_dataset(build(PackedData, given, "train_dataset.data_loader", set_kinds()))


def packed_dataset(data: PackedData):
    """A GeneratorDataset whose columns are those of the objective, with a store those of the teacher too.

    Raises UserError when the data cannot be read, or the step does not fit mindformers.
    """
    import mindspore.dataset as ds

    from mindspore_impl.losses.objective import FIELDS, TEACHER_FIELDS

    where = "train_dataset.data_loader"
    _check_accumulation(data.batch, f"{where}.batch")
    if (data.max_steps is None) == (data.num_train_epochs is None):
        raise UserError(f"{where}: give exactly one of max_steps and num_train_epochs")
    stream = _stream(data)
    names = FIELDS if data.store is None else FIELDS + TEACHER_FIELDS

    class Steps:
        def __len__(self):
            return data.max_steps or stream.steps_for_epochs(data.num_train_epochs)

        def __getitem__(self, step):
            (batch,) = stream.step(int(step))
            return tuple(getattr(batch, name) for name in names)

    columns = [name.rpartition("_")[0] for name in names]
    return ds.GeneratorDataset(Steps(), columns, shuffle=False, num_parallel_workers=1, python_multiprocessing=False)


def _stream(data: PackedData):
    from mindspore_impl.data.batches import BatchStream
    from mindspore_impl.data.rollouts import read_rollouts, to_sample
    from mindspore_impl.data.sources import load_set
    from mindspore_impl.data.teacher_store import StoreReader
    from mindspore_impl.text.chat import samples_of
    from mindspore_impl.text.tokenizer import Tokenizer

    if data.tokenizer.path is None:
        raise UserError("train_dataset.data_loader.tokenizer.path: no tokenizer is named")
    tokenizer = Tokenizer.load(data.tokenizer.path, data.tokenizer.template)
    samples = {
        name: samples_of(load_set(name, options, data.set_seed), tokenizer) for name, options in data.sets.items()
    }
    if data.rollouts is not None:
        found = read_rollouts(Path(data.rollouts), tokenizer, data.keep_truncated)
        samples[ROLLOUTS] = [to_sample(rollout, tokenizer) for rollout in found]
    teacher = None if data.store is None else StoreReader(Path(data.store), tokenizer_sha256=tokenizer.sha256)
    return BatchStream(samples, data.batch, data.seed, runtime.rank(), runtime.world_size(), teacher=teacher)


def write_stage(path: Path, config, name: str, reads: tuple[ModelOptions, Path | None, PackedData]) -> None:
    """Write the sft or distill stage `name` as a mindformers YAML.

    `reads`: its model, the weights that it starts from (None: random ones), and its data with absolute paths. Raises
    UserError when mindformers cannot train it, or `path` cannot be written.
    """
    import yaml

    stage, (model, weights, data) = config.stages[name].resolved(config), reads
    _check_accumulation(stage.data, f"stages.{name}.data")
    objective = getattr(stage, "objective", ObjectiveOptions(ce_weight=1.0))
    if objective.ce_weight is None:
        raise UserError(f"stages.{name}.objective.ce_weight: give a number: null needs hashes of the rollouts")
    schedule = asdict(stage.optimizer)
    beta1, beta2, epsilon, decay, clip = map(
        schedule.pop, ("adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm")
    )
    callbacks = [{"type": "MFLossMonitor", "per_print_times": stage.train.logging_steps}]
    if save_steps := stage.train.save_steps or stage.train.max_steps:
        callbacks.append({
            "type": "CheckpointMonitor", "prefix": "pangu", "save_checkpoint_steps": save_steps,
            "checkpoint_format": "safetensors", "save_network_params": True, "integrated_save": False,
            "async_save": False,
        })  # fmt: skip
    content = {
        "schema": SCHEMA,
        "seed": data.seed,
        "run_mode": "train",
        "output_dir": str(path.resolve().with_suffix("")),
        "load_checkpoint": "",
        "use_parallel": False,
        "parallel": {"parallel_mode": 0, "gradients_mean": False},
        "parallel_config": {"data_parallel": 1, "model_parallel": 1, "pipeline_stage": 1},
        "micro_batch_interleave_num": 1,
        # Processors can be chosen once a process, and `register` has: null keeps mindformers from trying again.
        "context": {"mode": 0, "max_call_depth": 10000, "affinity_cpu_list": None},
        "trainer": {"type": "CausalLanguageModelingTrainer", "model_name": "pangu_posttrain"},
        "runner_config": {"epochs": 1, "batch_size": data.batch.rows, "sink_mode": False},
        "runner_wrapper": {"type": "PanguTrainStep", "max_grad_norm": clip},
        "model": {
            "model_config": {
                "type": "PanguPosttrainConfig",
                "model": asdict(model),
                "weights": weights and str(weights),
                "seed": data.seed,
                "loss": {
                    "type": "PanguObjective", "with_teacher": data.store is not None,
                    **asdict(objective),
                },
            },
            "arch": {"type": "PanguPosttrainModel"},
        },
        "optimizer": {"type": "AdamW", "betas": [beta1, beta2], "eps": epsilon, "weight_decay": decay},
        "lr_schedule": {"type": "PanguSchedule", "total_steps": -1, **schedule},
        "train_dataset": {"data_loader": asdict(data)},
        "train_dataset_task": {"type": "PanguPackedDataset"},
        "callbacks": callbacks,
    }  # fmt: skip
    head = f"# Stage {name} of {config.name}, with the types of mindspore_impl.integrations.mindformers:\n"
    head += f"#   python tools/train_mindformers.py run {path}\n"
    files.write_text(path, head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _check_accumulation(batch: BatchOptions, where: str) -> None:
    if batch.gradient_accumulation_steps != 1:
        raise UserError(f"{where}.gradient_accumulation_steps: mindformers takes a step as one batch; set it to 1")
