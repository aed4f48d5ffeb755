"""Closed forms of an architecture: optional methods of its network, and how functions ask for them.

A generic function (`identity`, `induced_regularizer`, `mirror_flow`, ...) asks the network by
`closed_form`. A network *has* a closed form if it defines the method and the method does not return
None. It returns None where the form is unknown for the shapes of this network (a convolution with
short filters). `AbstractNetwork` lists the methods; a plain `equinox.Module` may define them, too.
"""

from typing import Any

import equinox as eqx

from ..messages import in_words
from .base import AbstractNetwork


def closed_form(network: Any, name: str, *arguments: Any) -> Any:
    """What the optional method `name` of the network returns; None where there is no such method.

    A method that raises has been asked for something that does not exist (a hidden layer that is
    too narrow, say): its error is passed on.
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
