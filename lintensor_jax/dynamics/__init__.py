"""Gradient flows and their discretisations. Knows nothing of `theory`."""

from .batch.batched_flow import batched_flow as batched_flow
from .batch.program_chunk import BatchedFlow as BatchedFlow
from .batch.programs import XLA as XLA
from .batch.programs import Native as Native
from .clocks import AbstractClock as AbstractClock
from .clocks import LogArcLength as LogArcLength
from .clocks import LossTime as LossTime
from .clocks import PhysicalTime as PhysicalTime
from .descent.descent_solution import DescentSolution as DescentSolution
from .descent.gradient_descent import gradient_descent as gradient_descent
from .descent.smoothness_steps import smoothness_steps as smoothness_steps
from .flow import gradient_flow as gradient_flow
from .gauss_newton import GaussNewton as GaussNewton
from .noise_and_mass.heavy_ball_flow import HeavyBallSolution as HeavyBallSolution
from .noise_and_mass.heavy_ball_flow import heavy_ball_flow as heavy_ball_flow
from .noise_and_mass.stochastic_flow import StochasticFlowSolution as StochasticFlowSolution
from .noise_and_mass.stochastic_flow import stochastic_flow as stochastic_flow
from .progress import FlowProgress as FlowProgress
from .reduced.end_to_end_flow import EndToEndMatrix as EndToEndMatrix
from .reduced.end_to_end_flow import induced_flow as induced_flow
from .reduced.mirror_flow import mirror_flow as mirror_flow
from .solution import FlowError as FlowError
from .solution import FlowSolution as FlowSolution
from .statuses import FlowStatus as FlowStatus
from .stopping import AbstractStop as AbstractStop
