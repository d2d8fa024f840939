"""Search by meaning to numbers: datasets, systems, rankings and their report."""
