"""Convergence rates: imbalance, bounds, wide networks, stable sets, the Riccati solution."""
