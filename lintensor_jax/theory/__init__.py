"""Predictions: every theorem as a limit, a bound or a certificate. Knows nothing of `dynamics`."""
