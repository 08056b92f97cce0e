"""How a stage runs: its entry point, signals, several processes, locks, progress."""
