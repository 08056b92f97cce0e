"""When things run: the flows that Prefect starts."""

import sys
from pathlib import Path

from contract.interruption import leave_on_signals

MAX_CONCURRENT = 64
"""Maximum trials of a sweep at once."""

if sys.argv[0] == "-m" or Path(sys.argv[0]).name == "flowers":  # the command itself, whose imports take a moment
    leave_on_signals("flowers", lambda number: 128 + number)
