"""Sweeps from TOML files: the configuration's keys, data files, starts by name, predictions."""
