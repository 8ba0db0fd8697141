"""Checks of finished stages: is a teacher store what its manifest says, and what its teacher says?"""

from pathlib import Path

from mindspore_impl import runtime
from mindspore_impl.curriculum.configuration import validate
from mindspore_impl.curriculum.kinds import Context
from mindspore_impl.curriculum.plan import make_plan
from mindspore_impl.curriculum.stages.capture import CaptureStage
from mindspore_impl.errors import UserError


def verify(store: Path, run_dir: Path | None, count: int, tolerance: float) -> int:
    """Print what is in `store`; with `run_dir`, score `count` of its sequences with the teacher again.

    Returns the number of problems in a damaged store, each printed with its shard and row. Raises UserError when there
    is no store, or it differs from its teacher by more than `tolerance` (in nats; fp16 storage alone explains about
    1e-2 at log-probabilities near -16).
    """
    from mindspore_impl.data.teacher_store import StoreReader, verify_store
    from mindspore_impl.data.validators import check_all

    if not store.is_dir():
        raise UserError(f"{store}: no such folder; name a teacher store")
    try:
        summary = verify_store(store)
    except UserError:
        if problems := check_all([store]):
            return problems
        raise
    for key, value in summary.items():
        print(f"{key}: {value}")
    if run_dir is None:
        return 0
    from mindspore_impl.distill.capture import fitting, rescore

    context = open_run(run_dir)
    planned = _capturing_stage(context, store)
    stage: CaptureStage = planned.stage
    model, _ = context.build_model(planned.model, stage.teacher)
    samples = context.captured_samples(stage)
    if stage.capture.overlong == "drop":
        samples = fitting(samples, stage.sequence_length)
    reader = StoreReader(store, tokenizer_sha256=context.tokenizer.sha256)
    result = rescore(model, reader, samples[:count], stage.sequence_length, stage.capture.rows_per_batch)
    for key, value in result.items():
        print(f"{key}: {value}")
    if result["max_abs_logp_difference"] > tolerance:
        raise UserError(
            f"{store}: the teacher's log-probabilities differ by up to {result['max_abs_logp_difference']:.3g} "
            f"(allowed: {tolerance:g}); capture again with these weights"
        )
    return 0


def open_run(run_dir: Path) -> Context:
    """The context of an existing run directory, its tokenizer loaded and the machine set up. Nothing is written.

    Raises UserError when config.yaml or the tokenizer is missing or damaged.
    """
    from mindspore_impl.report.run_files import read_config
    from mindspore_impl.text.tokenizer import Tokenizer

    config = validate(read_config(run_dir)[0])
    trained = run_dir / "tokenizer" / "tokenizer.model"
    if config.tokenizer.path is None and not trained.is_file():
        raise UserError(f"{trained}: the run's tokenizer is missing; run the curriculum in {run_dir} first")
    tokenizer = Tokenizer.load(config.tokenizer.path or trained, config.tokenizer.template)
    plan = {planned.name: planned for planned in make_plan(config)}
    runtime.setup(config.runtime, config.seed)
    return Context(config, run_dir, plan, tokenizer)


def _capturing_stage(context: Context, store: Path):
    for planned in context.plan.values():
        if planned.kind == "capture" and (context.folder(planned.name) / "store").resolve() == store.resolve():
            return planned
    raise UserError(f"{store}: no capture stage of {context.run_dir} made this store; check --run")
