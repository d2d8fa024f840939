"""Batches to weights: `pretrain` and `posttrain` are its two commands."""
