"""Notes which files the stages open; Python imports this by its name where PYTHONPATH names the folder."""

import os
import sys

if sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2].startswith("stages."):
    STAGE = sys.orig_argv[2].removeprefix("stages.")
    LOG = os.open(os.environ["OPENED_FILES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            os.write(LOG, f"{STAGE} {os.path.abspath(os.fsdecode(arguments[0]))}\n".encode())  # noqa: PTH100

    sys.addaudithook(note)
