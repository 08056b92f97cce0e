"""Measurements and proofs on a GPU, in one command with a deadline: `python -m bench.gpu --help`."""
