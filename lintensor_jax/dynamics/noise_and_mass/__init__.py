"""Flows with noise or with inertia: stochastic gradient flow and heavy-ball flow."""
