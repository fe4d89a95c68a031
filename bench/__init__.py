"""dep-bench: a benchmark harness for personalized text generation."""

__version__ = "0.1.0"
