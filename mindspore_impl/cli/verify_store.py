"""Verify a teacher store against its manifest and, on request, against its teacher."""

import argparse
from pathlib import Path

from mindspore_impl.cli.command import add_plugins_option, command, make_parser
from mindspore_impl.curriculum.runner import open_run
from mindspore_impl.curriculum.stages.capture import CaptureStage
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
    add_plugins_option(parser)
    options = parser.parse_args(arguments)
    return 1 if _problems(options.store, options) else 0


def _problems(store: Path, options: argparse.Namespace) -> int:
    """Print what is in `store`, or the problems of a damaged one; -> their number.

    Raises UserError when there is no store, or its teacher's log-probabilities differ (fp16 alone explains 1e-2 nats
    near -16).
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
    if options.run is not None:
        from mindspore_impl.distill.capture import rescore
        from mindspore_impl.distill.jobs import CaptureJob

        context = open_run(options.run, options.plugins)
        planned = next((p for p in context.plan.values() if isinstance(p.stage, CaptureStage)
                        and (context.folder(p.name) / "store").resolve() == store.resolve()), None)  # fmt: skip
        if planned is None:
            raise UserError(f"{store}: no capture stage of {options.run} made this store; check --run")
        stage: CaptureStage = planned.stage
        model, _ = context.build_model(planned.model, stage.teacher)
        samples = CaptureJob(**stage.request(context), folder=store, key=f"stages.{planned.name}.").fitting()
        reader = StoreReader(store, tokenizer_sha256=context.tokenizer.sha256)
        summary |= rescore(
            model, reader, samples[: options.samples], stage.sequence_length, stage.capture.rows_per_batch
        )
    for key, value in summary.items():
        print(f"{key}: {value}")
    if (worst := summary.get("max_abs_logp_difference", 0)) > options.tolerance:
        raise UserError(
            f"{store}: the teacher's log-probabilities differ by up to {worst:.3g} (allowed: {options.tolerance:g}); "
            "capture again with these weights"
        )
    return 0
