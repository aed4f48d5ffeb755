"""Certificates of stationarity in parameter and in predictor space, and induced regularisers."""
