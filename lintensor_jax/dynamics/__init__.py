"""Gradient flows and their discretisations. Knows nothing of `theory`."""

from .clocks import LogArcLength as LogArcLength
from .clocks import LossTime as LossTime
from .clocks import PhysicalTime as PhysicalTime
from .continuation import DirectionContinuation as DirectionContinuation
from .continuation import continue_direction as continue_direction
from .descent import DescentSolution as DescentSolution
from .descent import gradient_descent as gradient_descent
from .finish import GaussNewton as GaussNewton
from .flow import gradient_flow as gradient_flow
from .induced import EndToEndMatrix as EndToEndMatrix
from .induced import induced_flow as induced_flow
from .mirror import mirror_flow as mirror_flow
from .smoothness_steps import smoothness_steps as smoothness_steps
from .solution import FlowError as FlowError
from .solution import FlowSolution as FlowSolution
from .stopping import FlowStatus as FlowStatus
from .stopping import StopAtLoss as StopAtLoss
from .stopping import StopAtMargin as StopAtMargin
from .stopping import StopAtResidual as StopAtResidual
from .stopping import StopAtTime as StopAtTime
