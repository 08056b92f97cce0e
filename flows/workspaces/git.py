"""The git commands that flows need."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from contract.errors import FlowersError


class GitError(FlowersError):
    """A git command failed; the message holds the command and git's own message."""


def git(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a git command in `folder`, without the user's hooks, and return what it prints.

    Raises:
        GitError: it failed.
    """
    result = subprocess.run(
        ["git", "-c", f"core.hooksPath={os.devnull}", *arguments],
        cwd=folder,
        env=os.environ | (environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise GitError(f"`git {' '.join(arguments)}` failed: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout.rstrip("\n")


def try_git(folder: Path, *arguments: str) -> str | None:
    """Return what a git command prints; None where it fails."""
    try:
        return git(folder, *arguments)
    except GitError:
        return None


def resolve_commit(folder: Path, name: str) -> str | None:
    """Return the commit that git knows by a name, such as a branch, a tag, HEAD~2 or a digest; None if none."""
    return try_git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")


def read_file_at(folder: Path, commit: str, name: str) -> str | None:
    """Return the text of a file in a commit; None if the commit does not hold it."""
    text = try_git(folder, "show", f"{commit}:{name}")
    return None if text is None else f"{text}\n"
