"""One function a command; tools/*.py and the console scripts only call them.

Every command exits 0 on success, 2 on a fault of the user's (one message on stderr, no traceback unless
PANGU_DEBUG=1), 1 when a job of several processes or a trial of a sweep failed, or a check found problems in a file,
130 on Ctrl-C, 143 after SIGTERM.
"""

import argparse
import functools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mindspore_impl import runtime
from mindspore_impl.distributed import processes, ranks
from mindspore_impl.errors import JobFailed, UserError


def command(function: Callable[[list[str]], int | None]) -> Callable[[list[str] | None], int]:
    """Turn `function(arguments)`, which may return an exit code, into an entry point that maps errors to messages and
    exit codes."""

    @functools.wraps(function)
    def entry(arguments: list[str] | None = None) -> int:
        os.environ.setdefault("GLOG_v", "3")  # MindSpore's own log: errors only
        try:
            return function(sys.argv[1:] if arguments is None else arguments) or 0
        except UserError as error:
            if os.environ.get("PANGU_DEBUG") == "1":
                raise
            print(f"error: {error}", file=sys.stderr)
            return 2
        except JobFailed as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted; the same command continues where it stopped", file=sys.stderr)
            return 130
        except ranks.Stopped as stop:
            ranks.settle(stop)
            print("stopped by SIGTERM; the same command continues where it stopped", file=sys.stderr)
            return ranks.STOPPED

    return entry


def _parser(description: str, example: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=description, epilog=f"example:\n  {example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )


@command
def train(arguments: list[str]) -> None:
    """Run a curriculum."""
    parser = _parser(
        "Run a curriculum: every stage that is not finished, then the report. Settings are Hydra overrides of conf/.\n"
        "With --multirun a value can be a list, range(), glob() or, for Optuna, interval(): one run a combination, in\n"
        "run_dir/trials; run_dir is outputs/NAME_sweep if not given. Exit code 1 when a trial failed.",
        "python tools/train.py experiment=quickstart seed=2 run_dir=outputs/mine stages.teacher.train.max_steps=200\n"
        "  python tools/train.py --multirun seed=1,2,3 stages.distill_fast.objective.kd_weight=0.5,0.9 "
        "run_dir=outputs/sweep\n"
        "  python tools/train.py --multirun sweep=paper_ablation run_dir=outputs/paper_ablation",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. experiment=gsm8k data.train=train.jsonl"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan, sizes and memory estimates, then stop")
    parser.add_argument("--show-config", action="store_true", help="print the resolved configuration, then stop")
    parser.add_argument("--resume", type=Path, metavar="RUN_DIR", help="run what RUN_DIR/config.yaml says, as it is")
    parser.add_argument("--multirun", action="store_true", help="a sweep: a run for every combination of listed values")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trials of a sweep at a time (default 1)")
    parser.add_argument("--launched", type=Path, help=argparse.SUPPRESS)  # a rank reads what its launcher composed
    options = parser.parse_intermixed_args(arguments)
    if ranks.is_scheduler():
        return ranks.serve_scheduler()
    ranks.stop_on_sigterm()
    if options.multirun:
        from mindspore_impl.curriculum.sweep.runner import run_sweep

        return run_sweep(options.overrides, options.jobs, options.dry_run)
    if ranks.is_worker():
        return _train_rank(options)
    config = _config_of(options)
    if options.show_config:
        from omegaconf import OmegaConf

        from mindspore_impl.schema import to_plain

        print(OmegaConf.to_yaml(OmegaConf.create(to_plain(config))), end="")
        return
    from mindspore_impl.curriculum import launch, runner

    runner.print_plan(config)
    if options.dry_run:
        return
    if config.runtime.workers > 1:
        launch.spawn(config, options.overrides)
    else:
        runner.run(config)


def _config_of(options: argparse.Namespace):
    """The configuration of a single run: composed, that of a run to go on with, or what a launcher has composed."""
    from mindspore_impl import files
    from mindspore_impl.curriculum.configuration import compose, validate
    from mindspore_impl.curriculum.reopen import reopen

    if options.launched is not None:
        return validate(files.read_json(options.launched)["config"])
    config = compose(options.overrides) if options.resume is None else reopen(options.resume, options.overrides)
    if config.sweep is not None:
        raise UserError("sweep: many runs need --multirun; without it leave `sweep` out")
    return config


def _train_rank(options: argparse.Namespace) -> None:
    """One rank of a launch by msrun, ours or the user's own."""
    processes.die_with_parent(signal.SIGTERM)
    if options.dry_run or options.show_config:
        raise UserError("--dry-run and --show-config: only look, without msrun")
    from mindspore_impl.curriculum import launch, runner

    with launch.recorded(options.launched):
        config = launch.join(_config_of(options), options.overrides)
        if runtime.rank() == 0 and options.launched is None:
            runner.print_plan(config)
        runner.run(config)


@command
def report(arguments: list[str]) -> None:
    """Write report.html and metrics.json of a run again."""
    parser = _parser(
        "Write the report of a run directory again, or the comparison of a run over seeds, or that of a sweep.",
        "python tools/report.py outputs/quickstart",
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--compare", nargs=2, metavar="STAGE", help="over seeds: the two stages to compare")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="also the plot of a sweep, or a run's curves")
    options = parser.parse_args(arguments)
    from mindspore_impl.report.curves import write_curves
    from mindspore_impl.report.run_files import read_config
    from mindspore_impl.report.run_report import write_report
    from mindspore_impl.report.seeds_report import write_seeds_report
    from mindspore_impl.report.sweep_files import is_sweep

    if is_sweep(options.run_dir):
        from mindspore_impl.report.sweep_report import write_sweep_report

        print(write_sweep_report(options.run_dir, options.plot))
        return
    config, _ = read_config(options.run_dir)
    for key in ("seeds", "compare"):
        if not isinstance(config.get(key) or [], list):
            raise UserError(f"{options.run_dir / 'config.yaml'}: {key}: expected a list, found {config[key]!r}")
    if not config.get("seeds"):
        write_report(options.run_dir)
        if options.plot:
            write_curves(options.run_dir, options.plot)
    elif options.plot:
        raise UserError("--plot: name the run of one seed, a folder below this one, or a sweep")
    else:
        folders = _seed_folders(options.run_dir, config["seeds"])
        for folder in folders.values():
            write_report(folder)
        compare = options.compare or config.get("compare")
        write_seeds_report(folders, options.run_dir, compare=tuple(compare) if compare else None)
    print(options.run_dir / "report.html")


def _seed_folders(run_dir: Path, seeds: list[int]) -> dict[int, Path]:
    """The runs of `seeds` that have begun."""
    from mindspore_impl.curriculum.runner import seed_folder

    folders = {seed: seed_folder(run_dir, seed) for seed in seeds}
    return {seed: path for seed, path in folders.items() if (path / "config.yaml").is_file()}


@command
def train_tokenizer(arguments: list[str]) -> None:
    """Train a small SentencePiece tokenizer."""
    parser = _parser(
        "Train a small SentencePiece model with the Pangu special pieces on text or JSONL record files.",
        "python tools/train_tokenizer.py --vocab-size 2048 --output tokenizer.model records.jsonl notes.txt",
    )
    parser.add_argument("inputs", nargs="+", type=Path, help=".jsonl files (every text field is used) or plain text")
    parser.add_argument("--output", type=Path, default=Path("tokenizer.model"))
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--character-coverage", type=float, default=1.0)
    options = parser.parse_args(arguments)
    from mindspore_impl.text.tokenizer import texts_of
    from mindspore_impl.text.tokenizer import train_tokenizer as fit

    texts = (text for path in options.inputs for text in texts_of(path))
    tokenizer = fit(texts, options.output, options.vocab_size, options.character_coverage)
    print(f"{options.output}: {tokenizer.vocab_size} pieces, sha256 {tokenizer.sha256}")


@command
def verify_store(arguments: list[str]) -> int:
    """Check a teacher store."""
    parser = _parser(
        "Check a teacher store: shard hashes, counts, ranges; with --run also score a sample with the teacher again.\n"
        "Problems are listed one a line, with shard and row; then the exit code is 1.",
        "python tools/verify_store.py outputs/quickstart/stages/10_capture_fast/store --run outputs/quickstart",
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--run", type=Path, help="the run directory that captured it, for re-scoring")
    parser.add_argument("--samples", type=int, default=64, help="sequences scored again (default 64)")
    parser.add_argument("--tolerance", type=float, default=2e-2, help="largest log-probability difference allowed")
    options = parser.parse_args(arguments)
    from mindspore_impl.curriculum.verify import verify

    return 1 if verify(options.store, options.run, options.samples, options.tolerance) else 0


@command
def convert_weights(arguments: list[str]) -> None:
    """Convert weights between Hugging Face folders and checkpoints."""
    from mindspore_impl.curriculum import convert

    parser = _parser(
        "Convert weights between Hugging Face folders (config.json and safetensors in bf16, fp16 or fp32) and\n"
        "checkpoints (fp32), one tensor at a time. A stage can also start from such a folder: stages.NAME.init=DIR.",
        "python tools/convert_weights.py import DIR/openPangu-Embedded-1B outputs/pangu_1b\n  "
        "python tools/convert_weights.py export outputs/quickstart/stages/09_distill_fast outputs/hf --dtype bf16\n  "
        "python tools/convert_weights.py random pangu_1b outputs/rehearsal --shard-size 2GB\n  "
        "python tools/convert_weights.py describe DIR/llama > conf/model/mine.yaml",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="import | export | random | describe")
    verb = verbs.add_parser("import", help="Hugging Face folder or .gguf file -> checkpoint folder")
    verb.add_argument("source", type=Path, metavar="HF_DIR|GGUF")
    verb.add_argument("out", type=Path, metavar="OUT")
    verb = verbs.add_parser("export", help="checkpoint, or a run's stage folder -> Hugging Face folder")
    verb.add_argument("source", type=Path, metavar="CHECKPOINT")
    verb.add_argument("out", type=Path, metavar="HF_DIR")
    verb.add_argument(
        "--config", type=Path, metavar="FILE", help="config.json of the model, where nothing else says it"
    )
    convert.add_form_options(verb)
    verb = verbs.add_parser("random", help="model of conf/model with initial weights -> Hugging Face folder")
    verb.add_argument("model", metavar="MODEL", help="e.g. pangu_1b")
    verb.add_argument("out", type=Path, metavar="HF_DIR")
    verb.add_argument("--seed", type=int, default=0)
    verb.add_argument("--vocab-size", type=int, help="instead of the model's own")
    convert.add_form_options(verb)
    verb = verbs.add_parser("describe", help="print the file for conf/model/ that these weights need")
    verb.add_argument("source", type=Path, metavar="HF_DIR")
    options = parser.parse_args(arguments)
    if options.verb == "import":
        print(convert.import_weights(options.source, options.out))
    elif options.verb == "describe":
        print(convert.describe(options.source))
    else:
        form = convert.Form(options.dtype, options.shard_size, options.model_type)
        if options.verb == "export":
            print(convert.export_weights(options.source, options.out, form, options.config))
        else:
            print(convert.random_weights(options.model, options.out, options.seed, options.vocab_size, form))


@command
def prune_depth(arguments: list[str]) -> None:
    """Keep some of a model's layers."""
    from mindspore_impl.curriculum import convert

    parser = _parser("Keep some of a model's layers.", "python tools/prune_depth.py outputs/smollm2 outputs/half")
    convert.add_prune_options(parser)
    print(convert.prune_depth(**vars(parser.parse_args(arguments))))


def _tokenizer_options(parser: argparse.ArgumentParser) -> None:
    """How a model that is named by a path is talked to."""
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="default: the one beside the model")
    parser.add_argument("--template", help="pangu, chatml or smollm2 (default: the run's, or by the kind of tokenizer)")


@command
def chat(arguments: list[str]) -> None:
    """Talk to a model."""
    parser = _parser(
        "Talk to a model, or answer one --prompt: a run or a stage of it, a checkpoint, a Hugging Face folder, or an "
        "export package. The answer is streamed to stdout.",
        "python tools/chat.py --model outputs/quickstart --prompt 'list a b c d apply reverse sort'",
    )
    parser.add_argument("--model", type=Path, required=True, metavar="PATH")
    _tokenizer_options(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="answer this and stop, instead of a conversation")
    parser.add_argument("--system", metavar="TEXT", help="content of the system turn")
    parser.add_argument("--thinking", choices=("reasoning", "fast"), default="fast")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default): the most probable token")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0, help="0 (default): no limit")
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--context", type=int, default=2048, help="tokens of the whole conversation (default 2048)")
    options = parser.parse_args(arguments)
    from mindspore_impl.curriculum.resolve import open_conversation
    from mindspore_impl.generation.conversation import answer, converse
    from mindspore_impl.generation.options import SamplingOptions

    sampling = SamplingOptions(
        options.temperature, options.top_p, options.top_k, options.repetition_penalty,
        max_new_tokens=options.max_new_tokens,
    )  # fmt: skip
    conversation = open_conversation(
        options.model, options.tokenizer, options.template, sampling, options.seed, options.thinking, options.system,
        options.context,
    )  # fmt: skip
    if options.prompt is None:
        converse(conversation)
    else:
        answer(conversation, options.prompt, sys.stdout)


@command
def export(arguments: list[str]) -> None:
    """Make a MindIR package, or full graphs from one."""
    parser = _parser(
        "Export a model to a package of MindIR graphs for a board, with a parity report; or, with the words "
        "`materialise PACKAGE OUT`, write a package's graphs with their weights inside, for converter_lite.",
        "python tools/export.py --model outputs/quickstart --output outputs/board --precision fp16"
        "\n  python tools/export.py materialise outputs/board outputs/board_full",
    )
    if arguments[:1] == ["materialise"]:
        parser.add_argument("word", choices=["materialise"])
        parser.add_argument("package", type=Path)
        parser.add_argument("out", type=Path, help="a new folder for the full graphs")
        options = parser.parse_args(arguments)
        from mindspore_impl.export.package import materialise

        for path in materialise(options.package, options.out):
            print(path)
        return
    from mindspore_impl.curriculum import export_model

    export_model.add_options(parser)
    _tokenizer_options(parser)
    options = parser.parse_args(arguments)
    export_model.run(options)
    print(options.output)


@command
def evaluate(arguments: list[str]) -> None:
    """Run benchmarks on a model."""
    parser = _parser(
        "Run benchmarks on a model: MMLU, GSM8K and others from their published files, or any task of\n"
        "lm-evaluation-harness. The same command goes on where it was interrupted.",
        "python tools/evaluate.py --model outputs/quickstart --task gsm8k=test.jsonl --shots 0 --output outputs/gsm8k"
        "\n  python tools/evaluate.py --model DIR/hf --task mmlu=DIR/data ceval=DIR/ceval --output outputs/choices"
        "\n  python tools/evaluate.py --model DIR/hf --task mbpp=mbpp.jsonl --samples 10 --temperature 0.8 --output "
        "outputs/code"
        "\n  python tools/evaluate.py --model DIR/hf --harness arc_easy hellaswag --limit 200 --output outputs/harness",
    )
    from mindspore_impl.curriculum import evaluate_model
    from mindspore_impl.integrations.lm_eval import run_harness

    evaluate_model.add_options(parser)
    _tokenizer_options(parser)
    options = parser.parse_args(arguments)
    evaluate_model.evaluate_model(options, run_harness)
    print(options.output / "results.json")


@command
def train_mindformers(arguments: list[str]) -> None:
    """Train a stage through mindformers' Trainer."""
    parser = _parser(
        "Write a training stage of a run as a mindformers YAML that names our types, or run such a file through\n"
        "mindformers' Trainer. The stages before it must have run; its validation sets are left to mindformers.",
        "python tools/train_mindformers.py write distill_fast distill.yaml experiment=quickstart\n  "
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
    from mindspore_impl.curriculum.configuration import compose
    from mindspore_impl.curriculum.stage_files import stage_files

    config = compose(options.overrides)
    found = stage_files(config, options.stage)
    mindformers.write_stage(options.file, config, options.stage, **vars(found))
    print(options.file)


@command
def select_data(arguments: list[str]) -> int | None:
    """Choose the records worth training on."""
    parser = _parser(
        "Choose the records worth training on: a recipe of conf/selection (or a .yaml file) filters, de-duplicates,\n"
        "decontaminates and mixes them into OUTPUT/selected.jsonl, with a report of what each step dropped and why.",
        "python tools/select_data.py gsm8k data.train=train.jsonl data.test=test.jsonl output=outputs/selected\n  "
        "python tools/select_data.py --check train.jsonl rollouts.jsonl --tokenizer tokenizer.model",
    )
    parser.add_argument("recipe", nargs="?", help="gsm8k, general, filters_only or the path of a .yaml file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. steps.0.length.min_characters=20")
    parser.add_argument("--force", action="store_true", help="run again, and replace another recipe's selection")
    parser.add_argument("--check", nargs="+", metavar="FILE", help="instead: check record files, rollout files and "
                        "teacher stores, a line a problem; exit code 1 when there are any")  # fmt: skip
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="for --check: render everything, too")
    parser.add_argument("--template", help="for --check: pangu, chatml or smollm2 (default: by the kind of tokenizer)")
    options = parser.parse_intermixed_args(arguments)
    if options.check:
        from mindspore_impl.data.validators import check_all
        from mindspore_impl.text.tokenizer import Tokenizer

        tokenizer = options.tokenizer and Tokenizer.load(options.tokenizer, options.template)
        return 1 if check_all(options.check, tokenizer) else 0
    if options.recipe is None:
        parser.error("name a RECIPE, or files to --check")
    from mindspore_impl.data.selection import recipe, runner

    chosen = recipe.load(options.recipe, options.overrides)
    report = runner.run(chosen, options.recipe, options.force)
    output = Path(chosen.options.output)
    if report is None:
        print(f"{output / 'selected.jsonl'}: nothing has changed since it was made; --force makes it again")
    else:
        print(f"{output / 'selected.jsonl'}: {report['kept']} of {report['read']} records; {output / 'report.md'}")


@command
def query_teacher(arguments: list[str]) -> None:
    """Ask a teacher or student on a server, and import its answers."""
    from mindspore_impl.curriculum import outside
    from mindspore_impl.integrations.vllm import command as vllm

    parser = _parser(
        "Ask a vLLM (or vLLM-Ascend) server for a teacher's top-k along given sequences, or for answers to prompts,\n"
        "and import them as a teacher store or a rollout file. The same command asks again only for what is missing.",
        "python tools/query_teacher.py --run outputs/quickstart --stage capture_fast --url http://localhost:8000/v1",
    )
    outside.add_options(parser)
    vllm.add_options(parser)
    options = parser.parse_args(arguments)
    vllm.run(*outside.questions_of(options), options)


@command
def benchmark(arguments: list[str]) -> None:
    """Run a benchmark by name."""
    from mindspore_impl.speed import BENCHMARKS

    parser = _parser(
        "Compare us with a named peer in the same run: a table here, rows in outputs/benchmarks.csv, JSON on request.",
        "python tools/benchmark.py train_step --json outputs/train_step.json",
    )
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args(arguments)
    BENCHMARKS[options.name](options.json)


@command
def chaos(arguments: list[str]) -> None:
    """Kill runs at random moments."""
    parser = _parser(
        "Kill a small run with SIGKILL in each of its stages, at random moments and in the middle of writes, start it\n"
        "again with the same command, and compare its results with those of a run that was left alone.\n"
        "The last line says how many of the kills changed nothing; exit code 1 unless all.",
        "python tools/chaos.py --kills 50",
    )
    parser.add_argument("--kills", type=int, default=16, metavar="N", help="at least so many (default 16)")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2], help="ranks of the runs in turn (default 1 2)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for the runs and their logs; default: a new one in outputs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the run, as in train.py")
    options = parser.parse_intermixed_args(arguments)
    from mindspore_impl.curriculum import chaos

    folder = options.folder or Path("outputs") / f"chaos_{time.strftime('%Y%m%d-%H%M%S')}"
    chaos.run(options.kills, options.workers, folder, options.seed, tuple(options.overrides))


@command
def doctor(arguments: list[str]) -> None:
    """Say what this machine has and lacks."""
    parser = _parser("Say what this machine has and what is missing for what.", "python tools/doctor.py")
    parser.parse_args(arguments)
    from mindspore_impl.doctor import examine

    for line in examine():
        print(line)
