"""The statements of Pesme & Flammarion 2023, compared with the results here.

They are the statements of the paper's abstract.
"""

import itertools
from collections.abc import Iterator

from ..report import Claim

CAPTIONS = {
    "saddles": "After Figure 1 of Pesme & Flammarion 2023: training loss and coordinates of the "
    "flow over time in units of log(1/alpha). Left: the loss for smaller and smaller starts, and "
    "the loss of the algorithm (grey, dashed). Right: the coordinates from the smallest start, and "
    "those of the algorithm (grey, dashed).",
}


def claims(points: list[dict], scales: list[dict], ends: dict) -> Iterator[Claim]:
    """The claims of the abstract. `points` and `scales` are rows of the tables of these names.

    `ends`: the errors of the algorithm's last point and of the flow (`_ends` in `tables`).
    """
    visited, last = len(points) - 1, scales[-1]
    yield Claim(
        "saddles that the flow visits",
        "it jumps from one to the next, as the algorithm says",
        f"{last['visited']} of {visited + 1} points to 1e-6 at alpha = 1e-{last['digits']}",
        bool(last["visited"] == visited + 1),
    )
    yield Claim(
        "times of the jumps",
        "those of the algorithm, as the scale tends to 0",
        ", ".join(f"{row['late']:.1e} (1e-{row['digits']})" for row in scales)
        + f" in units of log(1/alpha); slope over the last two scales: {ends['slope_error']:.1e}",
        all(a["late"] > b["late"] for a, b in itertools.pairwise(scales)),
    )
    yield Claim(
        "where it ends",
        "at the solution of least l1 norm",
        f"algorithm: {ends['from_l1']:.1e} away; flow at 1e-{last['digits']}: "
        f"{ends['flow_from_l1']:.1e}",
        bool(ends["flow_from_l1"] < 1e-6),
    )
    yield Claim(
        "number of active coordinates",
        "need not be monotone",
        f"coordinates leave {ends['left']} times in {visited} jumps",
        True if ends["left"] else None,
    )
    yield Claim(
        "each saddle",
        "minimises the loss on its active coordinates",
        f"gradient there at most {ends['slack']:.1e}",
        bool(ends["slack"] < 1e-12),
    )
