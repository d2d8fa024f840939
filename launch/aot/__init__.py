"""Predicts what a config costs on an absent slice, by compiling ahead of time."""
