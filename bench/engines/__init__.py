"""Engines: what turns requests into generations. One file each, registered under `bench.engines`."""
