"""The areas, with the share of the cases that each gets."""

from collections.abc import Callable, Iterable

from .batches import batched, mirror
from .draws import Random
from .files import command_line, data_file, odd_configuration, sweep
from .flows import bad_options, classification, regression
from .least_norm import certify, max_margins, min_norm
from .networks import networks
from .outcomes import Case
from .problems import potentials, problems_and_losses
from .starts import alignments_and_rates, initializations
from .theorems import (
    bad_theory,
    decomposition,
    descent,
    induced,
    limit_direction,
    prediction,
)

# Shares in per cent. A case with a flow takes seconds and any other case milliseconds, so areas
# without flows get more cases.
_AREAS: dict[str, tuple[Callable[[Random], Case], int]] = {
    "networks": (networks, 9),
    "problems": (problems_and_losses, 8),
    "potentials": (potentials, 5),
    "gradient_flow, regression": (regression, 2),
    "gradient_flow, classification": (classification, 2),
    "batched_flow": (batched, 2),
    "mirror_flow": (mirror, 1),
    "induced_flow": (induced, 1),
    "gradient_descent": (descent, 3),
    "predict": (prediction, 3),
    "limit_direction": (limit_direction, 1),
    "max_margin": (max_margins, 9),
    "min_norm": (min_norm, 9),
    "certify": (certify, 6),
    "initialization": (initializations, 6),
    "alignment": (alignments_and_rates, 4),
    "decompositions": (decomposition, 5),
    "arguments of flows": (bad_options, 4),
    "arguments of theory": (bad_theory, 4),
    "TOML": (odd_configuration, 6),
    "CSV and NPZ": (data_file, 4),
    "sweep": (sweep, 1),
    "command line": (command_line, 5),
}
AREAS: dict[str, Callable[[Random], Case]] = {name: make for name, (make, _) in _AREAS.items()}


def shares(areas: Iterable[str], cases: int) -> dict[str, int]:
    """How many cases each area gets; at least one."""
    weights = {area: _AREAS[area][1] for area in areas}
    total = sum(weights.values())
    return {area: max(1, round(cases * w / total)) for area, w in weights.items()}
