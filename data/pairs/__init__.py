"""Texts that belong together: read or made, stored, and given in batches."""
