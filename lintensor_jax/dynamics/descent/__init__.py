"""Discretisations of the flow: gradient descent with any optax transformation, and step sizes."""
