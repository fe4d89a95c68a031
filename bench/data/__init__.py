"""Datasets: spec files, sources, filters, splits and the population of other users."""
