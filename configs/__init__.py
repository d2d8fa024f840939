"""Experiments, one file each. `base.py` holds every field with its default; the others change what they need."""
