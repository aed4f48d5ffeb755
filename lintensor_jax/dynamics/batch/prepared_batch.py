"""What a batch needs besides the parameters of its lanes."""

from typing import NamedTuple

from ..options import FlowOptions
from .fourier_basis import Spectral
from .hardware import Sizes
from .lane_data import LaneData
from .programs import AbstractCompilation, Arguments
from .stepper import Stepper


class PreparedBatch(NamedTuple):
    """What a batch needs besides the parameters of its lanes.

    - `stepper`, and `arguments`: the stepper of any width as an argument of programs.
    - `usual`: the options without the early finish.
    - `spectral`: the Fourier basis in which the lanes are integrated, or None.
    - `data`: the problem and the constants of all lanes.
    - `same_rest`: whether one lane's network has the rest (what is no parameter) of all networks.
    """

    stepper: Stepper
    arguments: Arguments
    usual: FlowOptions
    compilation: AbstractCompilation
    sizes: Sizes
    spectral: Spectral | None
    data: LaneData
    same_rest: bool

    def with_stepper(self, stepper: Stepper) -> "PreparedBatch":
        """The same with another stepper."""
        return self._replace(stepper=stepper, arguments=Arguments(stepper.of_any_width()))
