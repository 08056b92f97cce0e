"""The one kind of error that a stage shows as a single clear message."""


class StageError(Exception):
    """A stage cannot go on; the message says what was got, what is allowed and what to do."""
