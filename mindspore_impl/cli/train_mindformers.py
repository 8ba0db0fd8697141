"""Train a stage through the Trainer of mindformers."""

from dataclasses import replace
from pathlib import Path

from mindspore_impl import checkpoint
from mindspore_impl.cli.command import command, make_parser
from mindspore_impl.curriculum.configuration import Config, compose
from mindspore_impl.curriculum.plan import make_plan
from mindspore_impl.curriculum.stages.context import RunContext, load_tokenizer
from mindspore_impl.curriculum.stages.inputs import is_path
from mindspore_impl.curriculum.stages.sft import SftStage
from mindspore_impl.data.options import ROLLOUTS, FileSet
from mindspore_impl.errors import UserError
from mindspore_impl.integrations.mindformers import PackedData
from mindspore_impl.model.adapter_file import read_adapters
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.schema import nearest


@command
def main(arguments: list[str]) -> None:
    """Write a stage as a mindformers YAML, or train from such a file."""
    parser = make_parser(
        "Write a training stage of a run as a mindformers YAML that names our types, or run such a file through\n"
        "mindformers' Trainer. The stages before it must have run; its validation sets are left to mindformers.",
        "python tools/train_mindformers.py write distill_fast distill.yaml experiment=quickstart",
        "python tools/train_mindformers.py run distill.yaml",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="write | run")
    verb = verbs.add_parser("write", help="a stage -> mindformers YAML")
    verb.add_argument("stage", metavar="STAGE")
    verb.add_argument("file", type=Path, metavar="FILE.yaml")
    verb.add_argument("overrides", nargs="*", metavar="key=value", help="as for tools/train.py")
    verb = verbs.add_parser("run", help="train as a mindformers YAML says")
    verb.add_argument("file", type=Path, metavar="FILE.yaml")
    options = parser.parse_args(arguments)
    from mindspore_impl.integrations import mindformers

    if options.verb == "run":
        mindformers.train(options.file)
        return
    config = compose(options.overrides)
    mindformers.write_stage(options.file, config, options.stage, stage_files(config, options.stage))
    print(options.file)


def stage_files(config: Config, name: str) -> tuple[ModelOptions, Path | None, PackedData]:
    """The model, initial weights and data of the sft or distill stage `name`.

    Raises UserError when there is no such stage, the stages before it have not run yet, or it (or its initial weights)
    has LoRA adapters, which mindformers cannot read.
    """
    context = RunContext(config, Path(config.run_dir), {planned.name: planned for planned in make_plan(config)})
    trained = [each for each, planned in context.plan.items() if isinstance(planned.stage, SftStage)]
    if name not in trained:
        raise UserError(f"{name!r} is no sft or distill stage of this curriculum{nearest(name, trained)}")
    planned = context.plan[name]
    stage = planned.stage
    if stage.lora is not None:
        raise UserError(f"stages.{name}.lora: mindformers cannot train our adapters; set it to null")

    def there(path: str | Path) -> Path:
        if not Path(path).exists():
            raise UserError(f"{path}: does not exist yet; run the curriculum up to {name!r} first")
        return Path(path).resolve()

    tokenizer = there(config.tokenizer.path or context.run_dir / "tokenizer" / "tokenizer.model")
    context.tokenizer = load_tokenizer(config, context.run_dir)
    mixture = stage.mixture()
    data = PackedData(
        stage.train.max_steps, stage.train.num_train_epochs, planned.seed, config.seed,
        replace(config.tokenizer, path=str(tokenizer)), batch=replace(stage.data, mixture=mixture, validation=[]),
    )  # fmt: skip
    for each in mixture:
        if each != ROLLOUTS:
            options = context.set_options(each)
            if isinstance(options, FileSet):
                place = there(options.path) if config.maker_of(each) else Path(options.path).resolve()
                options = replace(options, path=str(place))
            data.sets[each] = options
    weights = None
    if stage.init is not None and is_path(stage.init):
        weights = there(stage.init)
    elif stage.init is not None:
        folder = there(context.folder(stage.init) / "checkpoints")
        found = checkpoint.selected(folder, context.plan[stage.init].stage.train.select)
        if read_adapters(found.weights_path) is not None:
            raise UserError(
                f"{found.path}: holds only LoRA adapters; merge them with `tools/convert_weights.py export "
                f"{folder.parent} DIR` and set stages.{name}.init=DIR"
            )
        weights = found.path
    if stage.init is not None:
        context.load(stage.init, "weights")  # refuses those of another tokenizer, or that were changed
    rollouts, store = getattr(stage, "rollouts", None), getattr(stage, "store", None)
    if store is not None:
        data.store = str(there(context.load(store, "store")))
    if rollouts is not None:
        of_file = is_path(rollouts)
        place = there(rollouts if of_file else context.folder(rollouts) / "rollouts.jsonl")
        data.rollouts = str(place) if ROLLOUTS in mixture else None
        data.keep_truncated = of_file or context.plan[rollouts].stage.rollout.keep_truncated
    return context.model_options(planned.model), weights, data
