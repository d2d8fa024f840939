"""Studies: encodings x tasks x seeds, one file each. Run with `python -m studies.ablate`."""
