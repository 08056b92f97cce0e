"""The parts of the sample stage."""
