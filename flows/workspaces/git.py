"""Questions to git that flows ask."""

from pathlib import Path

from contract.errors import FlowersError
from contract.git import GitError, git
from contract.paths import DVC_FILE


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
    """Return the text of a file of `folder` in a commit; None if the commit does not hold it.

    Raises:
        GitError: git cannot read the commit.
    """
    try:
        return git(folder, "show", f"{commit}:./{name}") + "\n"
    except GitError:
        if git(folder, "ls-tree", commit, "--", name):  # it is there, but cannot be read
            raise
        return None


def find_last_commit(checkout: Path) -> str:
    """Return the commit from which isolated runs start.

    Raises:
        FlowersError: there is no repository, no commit, or the commit does not hold the project in this folder.
    """
    try:
        place = git(checkout, "rev-parse", "--show-prefix")
        commit = resolve_commit(checkout, "HEAD")
        if commit is None:
            raise GitError("this repository has none yet: commit the project first")
        if not git(checkout, "ls-tree", commit, "--", str(DVC_FILE)):
            raise GitError(f"it does not hold {place}{DVC_FILE}: commit the project in this folder first")
        return commit
    except GitError as error:
        raise FlowersError(f"an isolated run starts from the last commit, and {error}") from None
