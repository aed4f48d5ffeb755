"""Figures from arrays. No other part of the package is imported, so that any data can be drawn."""
