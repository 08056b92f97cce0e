"""Report whose results are on disk as soon as they are known."""

import json
import time
from itertools import count
from pathlib import Path
from typing import Any

from ddpm.files import atomic_path

SAMPLES = {"ddpm": "samples_ddpm.npz", "dpm_solver++": "samples_dpm_solver.npz"}
FILES = ("report.json", "log.txt", "losses.csv", "kernels.txt", "grids.png", *SAMPLES.values())
"""Files that a call leaves in its folder."""

OURS = "this project, recorded"
PARTS_KEY = "a step's time with a part in its plain form, whole = 1"


class Deadline:
    """End of the command's time.

    Args:
        seconds: from now on.
    """

    def __init__(self, seconds: float) -> None:
        self._started = time.monotonic()
        self._seconds = seconds

    def spent(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._started

    def left(self) -> float:
        """Return the seconds until the end, negative after it."""
        return self._seconds - self.spent()


class Report:
    """Writer of report.json and log.txt in one folder; a folder with earlier results is renamed to NAME.1, NAME.2, …"""

    def __init__(self, folder: Path, deadline: Deadline) -> None:
        if any((folder / name).exists() for name in FILES):  # of an earlier call; they would pass for this one's
            folder.rename(_free_name(folder))
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.values: dict[str, Any] = {}
        self._deadline = deadline
        self._log = (folder / "log.txt").open("w")

    def add(self, name: str, value: Any) -> None:
        """Put a result into report.json, replacing an earlier one of that name."""
        self.values[name] = value
        with atomic_path(self.folder / "report.json") as temporary:
            temporary.write_text(json.dumps(self.values, indent=1) + "\n")

    def say(self, text: str) -> None:
        """Print a text and add it to log.txt, with the seconds since the start."""
        for line in text.splitlines():
            stamped = f"{self._deadline.spent():7.1f} s  {line}"
            print(stamped, flush=True)
            print(stamped, file=self._log, flush=True)


def _free_name(folder: Path) -> Path:
    names = (folder.with_name(f"{folder.name}.{number}") for number in count(1))
    return next(name for name in names if not name.exists())
