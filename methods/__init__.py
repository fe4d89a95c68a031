"""Built-in methods, one file (or folder) each, found through the `bench.methods` entry points."""
