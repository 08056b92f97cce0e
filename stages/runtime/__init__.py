"""Everything around a running stage: its entry point, signals, several processes, locks, progress."""
