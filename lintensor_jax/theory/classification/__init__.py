"""Limits of classification flows: which theorems apply, alignment, finite losses."""
