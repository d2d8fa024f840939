"""Predicts what a config costs on a slice that is not here, by compiling ahead of time."""
