"""The part of a run's report that shows which records bands and orders made a stage train on."""

from mindspore_impl.report import figures
from mindspore_impl.report.page import figure, table
from mindspore_impl.report.run_files import RunView

HEAD = ["stage", "set", "order", "number", "records", "kept", "dropped", "mean before", "mean kept"]


def section(run: RunView) -> str:
    """A histogram for each band, a line for each order, and a table; empty where no finished stage has either."""
    data = {stage.name: stage.metrics.get("data") or {} for stage in run.stages}
    orders = {name: one["order"] for name, one in data.items() if one.get("order")}
    changes = [(name, *item) for name, one in data.items() for item in (one.get("selection") or {}).items()]
    if not changes and not orders:
        return ""
    rows = [_row(name, set_name, change, orders.get(name)) for name, set_name, change in changes]
    bands = [(f"{name}: {each}", change) for name, each, change in changes if change["before"] != change["after"]]
    lines = [(f"{name}: {order['order']}", order) for name, order in orders.items()]
    told = [f"{row[0]} keeps {row[5]} of {row[4]} records of {row[1]} by {row[3]}" for row in rows]
    told += [f"{name} goes {order['order']} by {order['by']}" for name, order in orders.items()]
    drawn = figure(
        figures.difficulty_figure(bands, lines),
        "Difficulty of the data by stage: " + "; ".join(told),
        "Outline: all records of the set; filled: those inside the stage's band. For a stage with an order: the mean "
        "over successive parts of its first epoch.",
    )
    return drawn + (
        table(HEAD, rows, "One row for each set that met a band or an order.", text_columns=4) if rows else ""
    )


def _row(stage: str, set_name: str, change: dict, order: dict | None) -> list[str]:
    before, after = change["before"], change["after"]
    means = [f"{change[key]:.4g}" for key in ("mean_before", "mean_after")]
    name = order["order"] if order else "shuffled"
    return [stage, set_name, name, change["field"], f"{before:,}", f"{after:,}", f"{before - after:,}", *means]
