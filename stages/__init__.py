"""The programs that DVC runs; `python -m stages.NAME` reads this file before any other of the project."""

import sys
import time

from contract.interruption import leave_on_signals

STARTED_NS = time.time_ns()
"""Time at which Python began to read the code of the stage."""

EXIT_INTERRUPTED = 75
"""Exit status of an interrupted stage, which continues when it runs again (EX_TEMPFAIL of sysexits.h)."""

if sys.argv[0] == "-m":  # Python looks for a stage's program, whose imports take seconds
    leave_on_signals(f"{sys.orig_argv[-1].removeprefix('stages.')}: warning", lambda _: EXIT_INTERRUPTED)
