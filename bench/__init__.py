"""Measurements: each a command that prints one table of ratios taken in one run."""
