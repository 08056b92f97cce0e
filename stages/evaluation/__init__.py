"""The parts of the reference and evaluate stages."""
