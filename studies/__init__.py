"""Experiments to comparisons of many runs and their reports: ablations, the quickstart, the retrieval lineage."""
