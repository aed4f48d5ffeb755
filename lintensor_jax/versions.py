"""Versions of software that the numbers of a run depend on."""

import importlib.metadata
import platform

import jax

from ._version import __version__

LIBRARIES = ("jax", "jaxlib", "equinox", "diffrax", "optimistix", "lineax", "optax", "numpy")


def library_versions() -> dict[str, str]:
    """Versions of this package, of `LIBRARIES` and of Python, and the kind of JAX's device."""
    return {
        "lintensor_jax": __version__,
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
    }
