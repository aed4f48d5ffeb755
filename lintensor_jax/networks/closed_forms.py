"""Closed forms of an architecture: optional methods of its network, and how to call them.

A generic function (`identity`, `induced_regularizer`, `mirror_flow`, ...) calls them through
`closed_form`. A network *has* a closed form if it defines the method and the method does not return
None. It returns None if the form is unknown for the shapes of this network, such as a convolution
with short filters. `AbstractNetwork` lists the methods; a plain `equinox.Module` may define them,
too.
"""

from typing import Any

import equinox as eqx

from ..messages import in_words
from .base import AbstractNetwork


def closed_form(network: Any, name: str, *arguments: Any) -> Any:
    """What the optional method `name` of the network returns; None if there is no such method.

    An error of the method is passed on: it says that the requested network does not exist, for
    example because a hidden layer is too narrow.
    """
    method = getattr(network, name, None)
    return None if method is None else method(*arguments)


def architectures_with(name: str) -> str:
    """The networks of this package that define the method `name`, as words for a message."""
    package = __name__.partition(".")[0] + "."
    classes = AbstractNetwork.__subclasses__()
    ours = [c for c in classes if c.__module__.startswith(package) and hasattr(c, name)]
    return ", ".join(sorted(c.__name__ for c in ours))


def described(network: Any) -> str:
    """The kind of a network as words for a message: its `kind`, or the name of its class."""
    if not isinstance(network, eqx.Module):
        return in_words(network)
    return getattr(network, "kind", None) or type(network).__name__
