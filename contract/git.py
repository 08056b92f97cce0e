"""Run git in a folder, whatever repository the caller's environment names."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from contract.environment import without_repository
from contract.errors import FlowersError


class GitError(FlowersError):
    """A git command failed; the message holds the command and git's own message."""


def git(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a git command in `folder`, without the user's hooks, and return what it prints.

    Raises:
        GitError: it failed, or git is not installed.
    """
    command = ["git", "-c", f"core.hooksPath={os.devnull}", *arguments]
    try:
        result = subprocess.run(
            command,
            cwd=folder,
            env=without_repository(os.environ) | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",  # names of files are bytes
            check=False,
        )
    except OSError as error:
        raise GitError(f"`git {' '.join(arguments)}` cannot be run: {error}") from None
    if result.returncode != 0:
        reason = " ".join((result.stderr.strip() or result.stdout).split())  # in one line
        raise GitError(f"`git {' '.join(arguments)}` failed: {reason}")
    return result.stdout.rstrip("\n")
