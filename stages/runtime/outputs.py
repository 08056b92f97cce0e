"""Outputs of stages as JSON and CSV, each file whole or not there."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm.files import atomic_path

if TYPE_CHECKING:  # half a second, which a stage without tables need not wait for
    import pandas as pd


def write_json(path: Path, content: object) -> None:
    """Write indented JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def write_table(path: Path, table: "pd.DataFrame") -> None:
    """Write a table as CSV with the same line ends on every system, without its index."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
