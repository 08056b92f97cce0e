"""Where a flow run works: git worktrees, DVC's cache and DVC experiments."""
