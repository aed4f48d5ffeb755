"""Errors of stores, as opposed to mistakes in arguments."""


class SweepError(RuntimeError):
    """A store cannot be used or written to. Finished chunks are kept."""


class UnknownName(SweepError):
    """A store names a class, function or field that stores must not name."""


class LinkInStore(SweepError):
    """A store has a link, which could lead out of its folder. The link is not followed."""
