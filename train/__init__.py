"""Batches to weights. Read setup, loop, step; `pretrain` and `posttrain` are the commands."""
