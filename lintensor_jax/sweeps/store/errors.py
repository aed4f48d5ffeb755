"""What can go wrong with a sweep that is no mistake in an argument."""


class SweepError(RuntimeError):
    """A store that cannot be used or written to; chunks that were finished are kept."""


class UnknownName(SweepError):
    """A store that names a class, function or field that no store may name."""
