"""Notes which files the stages open; Python imports this by its name where PYTHONPATH names the folder."""

import os
import sys

if sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2].startswith("stages."):
    STAGE = sys.orig_argv[2].removeprefix("stages.")
    LOG = os.open(os.environ["OPENED_FILES"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def is_comparing() -> bool:
        """Return whether a stage only looks whether its dependencies stay as they are."""
        frame = sys._getframe()
        while frame := frame.f_back:
            if frame.f_code.co_filename.endswith("stages/runtime/dependencies.py"):
                return True
        return False

    def note(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike) and not is_comparing():
            os.write(LOG, f"{STAGE} {os.path.abspath(os.fsdecode(arguments[0]))}\n".encode())  # noqa: PTH100

    sys.addaudithook(note)
