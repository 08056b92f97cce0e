"""When things run: the flows that Prefect starts."""

import signal

MAX_CONCURRENT = 64
"""Maximum trials of a sweep at once."""

EXIT_INTERRUPTED = 128 + signal.SIGINT
"""Exit status after Ctrl-C, as a shell counts it."""
