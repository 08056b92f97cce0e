"""Errors that are shown to people as one clear message, without a traceback."""


class FlowersError(Exception):
    """Something cannot be done; the message says what was got, what is allowed and what to do."""


class StageError(FlowersError):
    """A stage cannot go on."""

    is_transient = False
    """Whether running the stage again may help, as after a broken network connection."""


class ParamsError(StageError):
    """Parameters cannot be used; the message names what was got and what is allowed."""
