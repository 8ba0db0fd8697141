"""Verify a teacher store against its manifest and, on request, against its teacher."""

from pathlib import Path

from mindspore_impl import runtime
from mindspore_impl.cli.command import command, make_parser
from mindspore_impl.config import CaptureStage, validate
from mindspore_impl.curriculum.kinds import Context
from mindspore_impl.curriculum.plan import PlannedStage, make_plan
from mindspore_impl.errors import UserError


@command
def main(arguments: list[str]) -> int:
    """Print what is in a store; list the problems of a damaged one and return 1."""
    parser = make_parser(
        "Check a teacher store: shard hashes, counts, ranges; with --run also score a sample with the teacher again.\n"
        "Problems are listed one a line, with shard and row; then the exit code is 1.",
        "python tools/verify_store.py outputs/quickstart/stages/10_capture_fast/store --run outputs/quickstart",
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--run", type=Path, help="the run directory that captured it, for re-scoring")
    parser.add_argument("--samples", type=int, default=64, help="sequences scored again (default 64)")
    parser.add_argument("--tolerance", type=float, default=2e-2, help="largest log-probability difference allowed")
    options = parser.parse_args(arguments)
    return 1 if verify(options.store, options.run, options.samples, options.tolerance) else 0


def verify(store: Path, run_dir: Path | None, count: int, tolerance: float) -> int:
    """Print what is in `store`; with `run_dir`, score `count` of its sequences with the teacher again.

    Returns the number of problems in a damaged store, each printed with its shard and row. Raises UserError when there
    is no store, or it differs from its teacher by more than `tolerance` (in nats; fp16 storage alone explains about
    1e-2 at log-probabilities near -16).
    """
    from mindspore_impl.data.teacher_store import verify_store
    from mindspore_impl.data.validators import check_all

    if not store.is_dir():
        raise UserError(f"{store}: no such folder; name a teacher store")
    try:
        summary = verify_store(store)
    except UserError:
        if problems := check_all([store]):
            return problems
        raise
    _print(summary)
    if run_dir is not None:
        _compare_with_teacher(store, open_run(run_dir), count, tolerance)
    return 0


def _print(values: dict) -> None:
    for key, value in values.items():
        print(f"{key}: {value}")


def _compare_with_teacher(store: Path, context: Context, count: int, tolerance: float) -> None:
    from mindspore_impl.data.teacher_store import StoreReader
    from mindspore_impl.distill.capture import fitting, rescore

    planned = _capturing_stage(context, store)
    stage: CaptureStage = planned.stage
    model, _ = context.build_model(planned.model, stage.teacher)
    samples = context.captured_samples(stage)
    if stage.capture.overlong == "drop":
        samples = fitting(samples, stage.sequence_length)
    reader = StoreReader(store, tokenizer_sha256=context.tokenizer.sha256)
    result = rescore(model, reader, samples[:count], stage.sequence_length, stage.capture.rows_per_batch)
    _print(result)
    if result["max_abs_logp_difference"] > tolerance:
        raise UserError(
            f"{store}: the teacher's log-probabilities differ by up to {result['max_abs_logp_difference']:.3g} "
            f"(allowed: {tolerance:g}); capture again with these weights"
        )


def open_run(run_dir: Path) -> Context:
    """The context of an existing run directory, with its tokenizer loaded and the runtime set up. Writes nothing.

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


def _capturing_stage(context: Context, store: Path) -> PlannedStage:
    for planned in context.plan.values():
        if planned.kind == "capture" and (context.folder(planned.name) / "store").resolve() == store.resolve():
            return planned
    raise UserError(f"{store}: no capture stage of {context.run_dir} made this store; check --run")
