"""Git commands, as the flows need them."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path


class GitError(Exception):
    """A git command failed; the message holds the command and what git said."""


def git(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What a git command in `folder` prints, without the last line's end. Hooks, which are people's, do not run.

    Args:
        folder: where it runs.
        arguments: of git.
        environment: variables to add.

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


def commit_named(folder: Path, name: str) -> str | None:
    """The commit that git finds under a name: a branch, a tag, HEAD~2, a digest."""
    try:
        return git(folder, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    except GitError:
        return None


def file_in(folder: Path, commit: str, name: str) -> str | None:
    """The text of a file as a commit holds it, or None where it holds none."""
    try:
        return git(folder, "show", f"{commit}:{name}") + "\n"
    except GitError:
        return None
