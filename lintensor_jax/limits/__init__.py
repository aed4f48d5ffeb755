"""Limits of classification flows: the only place where `dynamics` and `theory` meet."""

from .direction import LimitDirection as LimitDirection
from .direction import LimitStatus as LimitStatus
from .direction import limit_direction as limit_direction
