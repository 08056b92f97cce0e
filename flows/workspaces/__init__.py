"""Places where flow runs work: git worktrees, DVC's cache and DVC experiments."""
