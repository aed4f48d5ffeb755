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

AREAS: dict[str, Callable[[Random], Case]] = {
    "networks": networks,
    "gradient_flow, regression": regression,
    "gradient_flow, classification": classification,
    "batched_flow": batched,
    "mirror_flow": mirror,
    "induced_flow": induced,
    "gradient_descent": descent,
    "predict": prediction,
    "limit_direction": limit_direction,
    "decompositions": decomposition,
    "arguments of flows": bad_options,
    "arguments of theory": bad_theory,
    "TOML": odd_configuration,
    "CSV and NPZ": data_file,
    "sweep": sweep,
    "command line": command_line,
    "initialization": initializations,
    "alignment": alignments_and_rates,
    "max_margin": max_margins,
    "min_norm": min_norm,
    "certify": certify,
    "problems": problems_and_losses,
    "potentials": potentials,
}
# Cheap areas get more cases.
_SHARES = {"networks": 3}


def shares(areas: Iterable[str], cases: int) -> dict[str, int]:
    """How many cases each area gets; at least one."""
    weights = {area: _SHARES.get(area, 1) for area in areas}
    total = sum(weights.values())
    return {area: max(1, round(cases * w / total)) for area, w in weights.items()}
