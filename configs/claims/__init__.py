"""Claims: what is said of transformers, measured. Run with `python -m studies.claims`."""
