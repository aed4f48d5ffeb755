"""Limits of regression flows: Yun et al. 2021, Theorems 5 to 7, and other mirror maps."""
