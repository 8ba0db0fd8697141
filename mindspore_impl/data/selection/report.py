"""report.md of a selection, from its report.json."""


def markdown(report: dict) -> str:
    """A page a person reads: what came in, what each step dropped and why, what it cost."""
    lines = [
        f"# Selection by {report['recipe_name']}",
        "",
        f"{report['read']:,} records read, {report['kept']:,} kept ({_share(report['kept'], report['read'])}) in "
        f"{report['seconds']:.1f} s ({report['records_per_second']:,.0f} records/s; {report['processor_seconds']:.1f} "
        f"s of one processor); peak memory of the process: {report['peak_mb'] or 'unknown'} MB.",
        "",
        "| step | saw | kept | dropped | share |",
        "|---|---:|---:|---:|---:|",
    ]
    for step in report["steps"]:
        lines.append(
            f"| {step['where']} | {step['saw']:,} | {step['kept']:,} | {step['dropped']:,} | "
            f"{_share(step['dropped'], step['saw'])} |"
        )
    for step in report["steps"]:
        if step["reasons"] or step["notes"]:
            lines += ["", f"## {step['where']}", "", *_step(step)]
    lines += ["", "## Files", "", "| file | sha256 |", "|---|---|"]
    lines += [f"| {_cell(name)} | {sha256} |" for name, sha256 in report["files"].items()]
    lines += [f"| selected.jsonl | {report['output_sha256']} |", f"| the recipe | {report['recipe_sha256']} |", ""]
    return "\n".join(lines)


def _step(step: dict) -> list[str]:
    lines = [f"{key.replace('_', ' ')}: {_cell(str(value))}  " for key, value in step["notes"].items()]
    for reason, count in step["reasons"].items():
        lines.append(f"- {_cell(reason)}: {count:,}")
        for example in step["examples"].get(reason, []):
            text = " ".join(
                [
                    f"`{example.get('id', example['place'])}`",
                    *(["because of", f"`{example['other']}`"] if example.get("other") else []),
                    example.get("detail", ""),
                ]
            )
            lines.append(f"  - {_cell(text.strip())}")
    return lines


def _share(part: int, whole: int) -> str:
    percent = 100 * part / whole if whole else None
    return "-" if percent is None else f"{percent:.1f} %" if percent >= 1 or not part else f"{percent:.2g} %"


def _cell(text: str) -> str:
    """One line of a table, whatever a record put into it."""
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= 200 else text[:200] + "…"
