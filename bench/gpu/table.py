"""Print the report as a table for people."""

from bench.gpu.report import OURS, PARTS_KEY, Report


def write_table(report: Report) -> None:
    """Print the figures and the missing phases last, because some callers see only the end of the output."""
    lines = []
    if rows := report.values.get("train"):
        ours = rows.get(OURS)
        lines += [f"{'training':44} {'ms':>9} {'images/s':>9} {'of ceiling':>10} {'recorded is':>12}"]
        for name, row in rows.items():
            same_batch = ours and "batch" not in name
            ratio = f"{row['ms'] / ours['ms']:10.2f} x" if same_batch else ""
            lines.append(
                f"{name:44} {row['ms']:9.2f} {row['images_per_second']:9.0f} {100 * row['of_ceiling']:9.1f}% "
                f"{ratio:>12}"
            )
    for name in (
        "machine",
        "tests",
        "mode",
        "parts of a step, ms",
        PARTS_KEY,
        "sample",
        "published",
        "loss on valid",
    ):
        if name in report.values:
            value = report.values[name]
            shown = {key: each for key, each in value.items() if key != "results"} if isinstance(value, dict) else value
            lines.append(f"{name}: {shown}")
    lines += [f"{name}: {value}" for name, value in report.values.items() if name.endswith(".npz")]
    for phase in report.values.get("phases", []):
        lines.append(f"{phase['name']:24} {phase['seconds']:8.1f} s  {phase['outcome']}")
    print("\n".join(lines), flush=True)
