"""Checks of finished stages: is a teacher store what its manifest says, and what its teacher says?"""

from pathlib import Path

from mindspore_impl import runtime
from mindspore_impl.config import CaptureStage, Config, validate
from mindspore_impl.curriculum.kinds import Context
from mindspore_impl.curriculum.plan import make_plan
from mindspore_impl.curriculum.runner import prepare_tokenizer
from mindspore_impl.errors import UserError


def verify(store: Path, run_dir: Path | None, count: int, tolerance: float) -> None:
    """Print what is in `store`; with `run_dir`, score `count` of its sequences with the teacher again.

    Raises UserError when the store is damaged, or differs from its teacher by more than `tolerance` (in nats; fp16
    storage alone explains about 1e-2 at log-probabilities near -16).
    """
    from mindspore_impl.data.teacher_store import StoreReader, verify_store

    for key, value in verify_store(store).items():
        print(f"{key}: {value}")
    if run_dir is None:
        return
    from mindspore_impl.distill.capture import rescore

    context = open_run(run_dir)
    planned = _capturing_stage(context, store)
    stage: CaptureStage = planned.stage
    model = context.build_model(planned.model)
    context.load_weights(model, stage.teacher)
    samples = context.rollout_samples(stage.rollouts) if stage.rollouts else []
    samples = samples + [sample for name in stage.sets for sample in context.samples(name)]
    reader = StoreReader(store, tokenizer_sha256=context.tokenizer.sha256)
    result = rescore(model, reader, samples[:count], stage.sequence_length, stage.capture.rows_per_batch)
    for key, value in result.items():
        print(f"{key}: {value}")
    if result["max_abs_logp_difference"] > tolerance:
        raise UserError(
            f"{store}: the teacher's log-probabilities differ by up to {result['max_abs_logp_difference']:.3g} "
            f"(allowed: {tolerance:g}); capture again with these weights"
        )


def open_run(run_dir: Path) -> Context:
    """The context of an existing run directory, its tokenizer loaded and the machine set up."""
    from omegaconf import OmegaConf

    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir}: not a run directory (it holds no config.yaml)")
    config: Config = validate(OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml")))
    runtime.setup(config.runtime, config.seed)
    context = Context(config, run_dir, {planned.name: planned for planned in make_plan(config)})
    context.tokenizer = prepare_tokenizer(context)
    return context


def _capturing_stage(context: Context, store: Path):
    for planned in context.plan.values():
        if planned.kind == "capture" and (context.folder(planned.name) / "store").resolve() == store.resolve():
            return planned
    raise UserError(f"{store}: no capture stage of {context.run_dir} made this store; check --run")
