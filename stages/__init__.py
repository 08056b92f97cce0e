"""The programs that DVC runs; `python -m stages.NAME` reads this file before any other of the project."""

import time

STARTED_NS = time.time_ns()
"""Time at which Python began to read the code of the stage."""
