"""Train a stage through the Trainer of mindformers."""

from collections.abc import Callable
from pathlib import Path

from mindspore_impl.cli.command import command, make_parser
from mindspore_impl.curriculum.configuration import Config, compose
from mindspore_impl.curriculum.plan import make_plan
from mindspore_impl.curriculum.stages.context import RunContext, load_tokenizer
from mindspore_impl.curriculum.stages.inputs import is_path
from mindspore_impl.curriculum.stages.sft import SftStage
from mindspore_impl.data.options import ROLLOUTS
from mindspore_impl.errors import UserError
from mindspore_impl.integrations.mindformers import StageInputs
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


def stage_files(config: Config, name: str) -> StageInputs:
    """The files of the sft or distill stage `name`.

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
    found = StageInputs(context.model_options(planned.model), planned.seed, tokenizer)
    found.sets = {each: context.set_options(each) for each in stage.mixture() if each != ROLLOUTS}
    for each, options in found.sets.items():
        if config.maker_of(each):
            there(options.path)
    if stage.init is not None:
        found.weights = there(stage.init) if is_path(stage.init) else _checkpoint(context, stage.init, name, there)
    rollouts, store = getattr(stage, "rollouts", None), getattr(stage, "store", None)
    if store is not None:
        found.store = there(context.load(store, "store"))
    if rollouts is not None:
        of_file = is_path(rollouts)
        found.rollouts = there(rollouts if of_file else context.folder(rollouts) / "rollouts.jsonl")
        found.keep_truncated = of_file or context.plan[rollouts].stage.rollout.keep_truncated
    return found


def _checkpoint(context: RunContext, stage: str, name: str, there: Callable[[Path], Path]) -> Path:
    """The checkpoint of `stage` that the stage `name` starts from."""
    from mindspore_impl import checkpoint
    from mindspore_impl.model.adapter_file import read_adapters

    folder = there(context.folder(stage) / "checkpoints")
    found = checkpoint.selected(folder, context.plan[stage].stage.train.select)
    if read_adapters(found.weights_path) is not None:
        raise UserError(
            f"{found.path}: holds only LoRA adapters; merge them with `tools/convert_weights.py export "
            f"{folder.parent} DIR` and set stages.{name}.init=DIR"
        )
    return found.path
