"""Metrics, one file each. Every one is an `evaluate.Metric` that works without a network."""
