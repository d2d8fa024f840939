"""Experiments to comparisons of many runs and their reports.

Ablations, the quickstart, and search by meaning along its lineage.
"""
