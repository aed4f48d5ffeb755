"""A gradient-flow laboratory for linear tensor networks.

Importing this package changes no global state of JAX and initialises no backend. Work in float64:
``jax.config.update("jax_enable_x64", True)``.
"""

from . import initialization as initialization
from . import sweeps as sweeps
from . import theory as theory
from ._version import __version__ as __version__
from .dynamics import DescentSolution as DescentSolution
from .dynamics import FlowError as FlowError
from .dynamics import FlowSolution as FlowSolution
from .dynamics import FlowStatus as FlowStatus
from .dynamics import GaussNewton as GaussNewton
from .dynamics import LogArcLength as LogArcLength
from .dynamics import LossTime as LossTime
from .dynamics import PhysicalTime as PhysicalTime
from .dynamics import StopAtLoss as StopAtLoss
from .dynamics import StopAtMargin as StopAtMargin
from .dynamics import StopAtResidual as StopAtResidual
from .dynamics import StopAtTime as StopAtTime
from .dynamics import gradient_descent as gradient_descent
from .dynamics import gradient_flow as gradient_flow
from .dynamics import induced_flow as induced_flow
from .dynamics import mirror_flow as mirror_flow
from .dynamics import smoothness_steps as smoothness_steps
from .limits import LimitDirection as LimitDirection
from .limits import LimitStatus as LimitStatus
from .limits import limit_direction as limit_direction
from .losses import ExponentialLoss as ExponentialLoss
from .losses import LogisticLoss as LogisticLoss
from .networks import AbstractNetwork as AbstractNetwork
from .networks import AssumptionFails as AssumptionFails
from .networks import ConvolutionalNetwork as ConvolutionalNetwork
from .networks import DiagonalNetwork as DiagonalNetwork
from .networks import DifferentialDiagonalNetwork as DifferentialDiagonalNetwork
from .networks import FullyConnectedNetwork as FullyConnectedNetwork
from .networks import MatrixFactorizationNetwork as MatrixFactorizationNetwork
from .networks import OrthogonalDecomposition as OrthogonalDecomposition
from .networks import OrthogonalNetwork as OrthogonalNetwork
from .networks import SensingDecomposition as SensingDecomposition
from .networks import TensorNetwork as TensorNetwork
from .networks import constant as constant
from .networks import decompose_tensor as decompose_tensor
from .networks import dense_tensor as dense_tensor
from .networks import mirror_map as _mirror_map
from .networks import sensing_decomposition as sensing_decomposition
from .networks.conserved import conserved_quantities as conserved_quantities
from .problems import Classification as Classification
from .problems import MatrixSensing as MatrixSensing
from .problems import Regression as Regression
from .sweeps import resume as resume
from .sweeps import sweep as sweep
from .theory import Alignment as Alignment
from .theory import Certificate as Certificate
from .theory import ConvergenceRateBound as ConvergenceRateBound
from .theory import FourierL1Norm as FourierL1Norm
from .theory import FourierLpNorm as FourierLpNorm
from .theory import Imbalance as Imbalance
from .theory import L1Norm as L1Norm
from .theory import L2Norm as L2Norm
from .theory import L21Norm as L21Norm
from .theory import LandscapePoint as LandscapePoint
from .theory import LpNorm as LpNorm
from .theory import NuclearNorm as NuclearNorm
from .theory import PointKind as PointKind
from .theory import Prediction as Prediction
from .theory import Regularizer as Regularizer
from .theory import WeightedL2Norm as WeightedL2Norm
from .theory import alignment as alignment
from .theory import certify as certify
from .theory import convergence_rate_bound as convergence_rate_bound
from .theory import imbalance as imbalance
from .theory import induced_regularizer as induced_regularizer
from .theory import is_separable as is_separable
from .theory import landscape_point as landscape_point
from .theory import max_margin as max_margin
from .theory import min_norm as min_norm
from .theory import minimal_network as minimal_network
from .theory import predict as predict

potential = _mirror_map
