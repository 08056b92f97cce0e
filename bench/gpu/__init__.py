"""Everything that has to be found out on a GPU, by one command that ends in time: `python -m bench.gpu --help`."""
