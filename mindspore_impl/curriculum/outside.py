"""What a capture or rollout stage, or a file, would ask of a teacher or student that runs elsewhere."""

import argparse
from pathlib import Path

from mindspore_impl.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `tools/query_teacher.py` that say what is asked."""
    what = parser.add_argument_group("what is asked: a stage of a run, or a file")
    what.add_argument("--run", type=Path, metavar="DIR", help="a run directory; its earlier stages must be done")
    what.add_argument("--stage", metavar="NAME", help="its capture stage (asks top-k) or rollout stage")
    what.add_argument("--records", type=Path, metavar="FILE", help="record file: top-k of its labels, or its prompts")
    what.add_argument("--rollouts", type=Path, metavar="FILE", help="rollout file: top-k of its answers")
    what.add_argument("--ask", choices=("top_k", "rollouts"), default="top_k", help="of --records (default top_k)")
    what.add_argument("--tokenizer", type=Path, metavar="FILE", help="of the server's model, for a file")
    what.add_argument("--template", help="pangu, chatml or smollm2 (default: by the kind of tokenizer)")
    what.add_argument("--weights", type=Path, metavar="PATH", help="the server's weights, for their hash (optional)")
    own = parser.add_argument_group("settings of questions from a file (a stage has its own)")
    own.add_argument("--top-k", type=int, default=10, metavar="K")
    own.add_argument("--samples-per-prompt", type=int, default=1, metavar="N")
    own.add_argument("--temperature", type=float, default=1.0)
    own.add_argument("--top-p", type=float, default=1.0)
    own.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0, help="of sampling and of waits (default 0)")


def questions_of(options: argparse.Namespace):
    """(TopkQuestions or RolloutQuestions, the folder for what comes of them) for parsed `add_options`.

    Raises UserError when not exactly one source is named, or it cannot be asked.
    """
    sources = [options.run, options.records, options.rollouts]
    if sum(source is not None for source in sources) != 1 or (options.run is None) != (options.stage is None):
        raise UserError("say what to ask: --run DIR --stage NAME, or --records FILE, or --rollouts FILE")
    weights = None if options.weights is None else _hash_of(options.weights)
    if options.run is not None:
        return _of_stage(options.run, options.stage, weights), options.run / "outside" / options.stage
    if options.tokenizer is None:
        raise UserError("--tokenizer: name the tokenizer of the server's model; every id depends on it")
    source = options.records or options.rollouts
    return _of_file(options, weights), source.with_suffix(".outside")


def _hash_of(path: Path) -> str:
    from mindspore_impl.curriculum.plan import file_hash
    from mindspore_impl.curriculum.resolve import open_weights
    from mindspore_impl.model.weights import identity

    return identity(open_weights(path), file_hash)


def _of_stage(run_dir: Path, name: str, weights: str | None):
    from mindspore_impl.curriculum.stages.capture import CaptureStage
    from mindspore_impl.curriculum.stages.rollout import RolloutStage
    from mindspore_impl.curriculum.verify import open_run
    from mindspore_impl.distill.external import RolloutQuestions, TopkQuestions
    from mindspore_impl.schema import nearest

    context = open_run(run_dir)
    stage = context.config.stages.get(name)  # it may be left out of `order`, where an outside teacher stands for it
    if not isinstance(stage, CaptureStage | RolloutStage):
        fitting = [n for n, s in context.config.stages.items() if isinstance(s, CaptureStage | RolloutStage)]
        raise UserError(f"--stage: {name!r} is no capture or rollout stage of {run_dir}{nearest(name, fitting)}")
    if isinstance(stage, RolloutStage):
        records = [record for n in stage.prompts for record in context.records(n)[: stage.rollout.limit]]
        seed = context.config.seed if stage.seed is None else stage.seed
        return RolloutQuestions(context.tokenizer, records, stage.rollout, stage.sampling, seed, weights)
    if stage.capture.mode != "top_k":
        raise UserError(f"stages.{name}.capture.mode: {stage.capture.mode} cannot be asked of a server; use top_k")
    samples = _fitting(context.captured_samples(stage), stage.sequence_length, stage.capture.overlong, name)
    return TopkQuestions(context.tokenizer, samples, stage.capture.top_k, stage.capture.temperature, weights)


def _fitting(samples: list, length: int, overlong: str, name: str) -> list:
    """The samples that an in-process capture would score."""
    from mindspore_impl.distill.capture import fitting

    if overlong == "drop":
        return fitting(samples, length)
    for sample in samples:
        if len(sample.ids) > length:
            raise UserError(
                f"record {sample.record_id!r} has {len(sample.ids)} tokens, more than stages.{name}.sequence_length "
                f"{length}; raise it, or choose stages.{name}.capture.overlong=drop"
            )
    return samples


def _of_file(options: argparse.Namespace, weights: str | None):
    from mindspore_impl.data.options import DatasetOptions
    from mindspore_impl.data.rollouts import read_rollouts, to_sample
    from mindspore_impl.data.sources import load_set
    from mindspore_impl.distill.external import RolloutQuestions, TopkQuestions
    from mindspore_impl.distill.options import RolloutOptions
    from mindspore_impl.generation.options import SamplingOptions
    from mindspore_impl.text.chat import render
    from mindspore_impl.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(options.tokenizer, options.template)
    if options.rollouts is not None:
        samples = [to_sample(item, tokenizer) for item in read_rollouts(options.rollouts, tokenizer, True)]
        return TopkQuestions(tokenizer, samples, options.top_k, options.temperature, weights)
    records = load_set("records", DatasetOptions(source="records", path=str(options.records)), options.seed)
    if options.ask == "top_k":
        samples = [render(record, tokenizer) for record in records]
        return TopkQuestions(tokenizer, samples, options.top_k, options.temperature, weights)
    sampling = SamplingOptions(options.temperature, options.top_p, max_new_tokens=options.max_new_tokens)
    repeats = RolloutOptions(samples_per_prompt=options.samples_per_prompt)
    return RolloutQuestions(tokenizer, records, repeats, sampling, options.seed, weights)
