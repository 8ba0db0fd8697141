"""Run a curriculum, on one process or several, or a sweep of curricula."""

import argparse
import signal
from pathlib import Path

from mindspore_impl import runtime
from mindspore_impl.cli.command import add_plugins_option, command, make_parser
from mindspore_impl.distributed import processes, ranks, scheduler
from mindspore_impl.errors import UserError


@command
def main(arguments: list[str]) -> int | None:
    """Run every unfinished stage of a curriculum, then write the report."""
    options = _parse(arguments)
    if ranks.is_scheduler():
        return scheduler.serve()
    _check_options(options)
    ranks.stop_on_sigterm()
    if options.multirun:
        from mindspore_impl.curriculum.sweep.runner import run_sweep

        return run_sweep(options.overrides, options.jobs, options.dry_run, options.config_dir)
    if ranks.is_worker():
        return _train_rank(options)
    if options.cfg is not None:
        from mindspore_impl.config import compose_text

        print(compose_text(options.overrides, options.config_dir, options.resolve), end="")
        return None
    config = _config_of(options)
    if options.show_config:
        from mindspore_impl.curriculum.configuration import to_yaml

        print(to_yaml(config), end="")
        return None
    from mindspore_impl.curriculum import launch, runner

    runner.print_plan(config)
    if options.dry_run:
        return None
    if config.runtime.workers > 1:
        launch.spawn(config, options.overrides)
    else:
        runner.run(config)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = make_parser(
        "Run a curriculum: every stage that is not finished, then the report. Settings are Hydra overrides of conf/.\n"
        "With --multirun a value can be a list, range(), glob() or, for Optuna, interval(): one run a combination, in\n"
        "run_dir/trials; run_dir is outputs/NAME_sweep if not given. Exit code 1 when a trial failed.\n"
        "The choice of a group can be a YAML file of your own, from any folder: experiment=mine.yaml.",
        "python tools/train.py experiment=quickstart seed=2 run_dir=outputs/mine stages.teacher.train.max_steps=200",
        "python tools/train.py --multirun seed=1,2,3 stages.distill_fast.objective.ce_weight=0,0.1 "
        "run_dir=outputs/sweep",
        "python tools/train.py --multirun sweep=paper_ablation run_dir=outputs/paper_ablation",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. experiment=gsm8k data.train=FILE")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, sizes and memory estimates, then stop")
    parser.add_argument("--show-config", action="store_true", help="print the whole validated configuration, then stop")
    parser.add_argument("--cfg", choices=["job"], help="print the composed configuration as Hydra does, then stop")
    parser.add_argument("--resolve", action="store_true", help="with --cfg: resolve interpolations")
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="a folder of your own YAML groups beside conf/")
    parser.add_argument("--resume", type=Path, metavar="RUN_DIR", help="continue the run of RUN_DIR/config.yaml")
    add_plugins_option(parser)
    parser.add_argument("--multirun", "-m", action="store_true", help="a sweep: a run for every combination of values")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="concurrent trials of a sweep (default 1)")
    parser.add_argument("--launched", type=Path, help=argparse.SUPPRESS)  # a rank reads what its launcher composed
    return parser.parse_intermixed_args(arguments)


def _check_options(options: argparse.Namespace) -> None:
    """Refuse options that would have no effect together."""
    if options.resume is not None and (
        given := [*options.overrides, *(["--config-dir"] if options.config_dir else [])]
    ):
        raise UserError(f"--resume: the run continues as configured; leave out {' '.join(given)}")
    shown = {"--cfg": options.cfg, "--show-config": options.show_config, "--resume": options.resume}
    for name, value in shown.items():
        if options.multirun and value:
            raise UserError(f"{name}: is for one run; leave out --multirun, or see --dry-run for the trials")
    if options.resolve and options.cfg is None:
        raise UserError("--resolve: only with --cfg job")
    if options.jobs != 1 and not options.multirun:
        raise UserError("--jobs: only with --multirun")
    if ranks.is_worker() and (options.dry_run or options.show_config or options.cfg):
        raise UserError("--dry-run, --show-config and --cfg: not available under msrun; run the command without it")


def _config_of(options: argparse.Namespace):
    """The configuration of a single run: composed, read from a run directory, or passed on by the launcher."""
    from mindspore_impl import files
    from mindspore_impl.curriculum import plugins
    from mindspore_impl.curriculum.configuration import compose, reopen, validate

    if options.launched is not None:
        content = files.read_json(options.launched)["config"]
        plugins.load(content["plugins"])
        return validate(content)
    if options.resume is None:
        config = compose(options.overrides, options.config_dir)
    else:
        config = reopen(options.resume, options.plugins)
    if config.sweep is not None:
        raise UserError("sweep: many runs need --multirun; without it leave `sweep` out")
    return config


def _train_rank(options: argparse.Namespace) -> None:
    """Run one rank of an msrun launch, ours or the user's own."""
    processes.die_with_parent(signal.SIGTERM)
    from mindspore_impl.curriculum import launch, runner

    with launch.recorded(options.launched):
        config = launch.join(_config_of(options), options.overrides)
        if runtime.rank() == 0 and options.launched is None:
            runner.print_plan(config)
        runner.run(config)
