"""Commands for working on the project."""
