"""Experiments, one file each: `base.py` holds every field, the others change what they need."""
