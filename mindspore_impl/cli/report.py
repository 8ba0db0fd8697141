"""Rewrite the report of a run, of a run over seeds, or of a sweep."""

from pathlib import Path

from mindspore_impl.cli.command import command, make_parser
from mindspore_impl.errors import UserError


@command
def main(arguments: list[str]) -> None:
    """Write report.html and metrics.json of a run directory again."""
    parser = make_parser(
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
        from mindspore_impl.curriculum.runner import seed_folder

        folders = {seed: seed_folder(options.run_dir, seed) for seed in config["seeds"]}
        folders = {seed: path for seed, path in folders.items() if (path / "config.yaml").is_file()}  # has started
        for folder in folders.values():
            write_report(folder)
        compare = options.compare or config.get("compare")
        write_seeds_report(folders, options.run_dir, compare=tuple(compare) if compare else None)
    print(options.run_dir / "report.html")
