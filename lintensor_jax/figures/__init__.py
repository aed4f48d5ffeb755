"""Figures from arrays. Imports nothing of the package, so that anyone's data can be drawn."""
