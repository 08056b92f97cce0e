"""Errors that are shown to people as one clear message, without a traceback."""

import errno
import re
from collections.abc import Sequence
from pathlib import Path

_DISK = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room or have the quota raised",
    errno.EFBIG: "have the limit of file sizes raised",
    errno.EROFS: "work where files can be written",
    errno.EACCES: "give this user the permission",
    errno.EPERM: "give this user the permission",
}
"""Advice about errors of files, by their number."""

_NUM_NAMES_SHOWN = 3

_LOGIN = re.compile(r"(://)[^\s/@]+@|(:/{1,2})[^\s@]*:[^\s@]*@")
"""User and password in an address; the password may hold a slash, although it must not."""


class FlowersError(Exception):
    """Something cannot be done; the message says what was got, what is allowed and what to do, but no password."""

    def __init__(self, message: str) -> None:
        super().__init__(hide_password(message))


class StageError(FlowersError):
    """A stage cannot go on."""

    is_transient = False
    """Whether running the stage again may help, as after a broken network connection."""


class ParamsError(StageError):
    """Parameters cannot be used; the message names what was got and what is allowed."""


def hide_password(text: str) -> str:
    """Return a text without the users and passwords of addresses in it."""
    return _LOGIN.sub(r"\1\2…@", text)


def explain_os_error(error: OSError) -> str | None:
    """Describe an error of the file system in one line that names the file; None for others, such as of a network."""
    if error.filename is None and error.errno not in _DISK:
        return None
    place = f"a file below {Path.cwd()}" if error.filename is None else error.filename
    advice = _DISK.get(error.errno or 0)
    return f"{place}: {error.strerror}" + (f"; {advice}, then run it again" if advice else "")


def name_few(names: Sequence[str]) -> str:
    """Return the first names and the number of the others, for a message of one line."""
    shown = [name if name.isprintable() else ascii(name) for name in names[:_NUM_NAMES_SHOWN]]
    more = f" and {len(names) - _NUM_NAMES_SHOWN} more" if len(names) > _NUM_NAMES_SHOWN else ""
    return f"{', '.join(shown)}{more}"
