"""Predictions: every theorem as a limit, a bound or a certificate. Knows nothing of `dynamics`."""

from .margins import MaxMargin as MaxMargin
from .margins import NonSeparableError as NonSeparableError
from .margins import Separability as Separability
from .margins import is_separable as is_separable
from .margins import max_margin as max_margin
from .min_norm import InconsistentEquationsError as InconsistentEquationsError
from .min_norm import MinNorm as MinNorm
from .min_norm import min_norm as min_norm
from .neuron import NeuronLimit as NeuronLimit
from .neuron import single_neuron_limit as single_neuron_limit
from .norms import FourierL1Norm as FourierL1Norm
from .norms import FourierLpNorm as FourierLpNorm
from .norms import L1Norm as L1Norm
from .norms import L2Norm as L2Norm
from .norms import L21Norm as L21Norm
from .norms import LpNorm as LpNorm
from .norms import NuclearNorm as NuclearNorm
from .norms import WeightedL2Norm as WeightedL2Norm
from .regression import TwoLayerLimit as TwoLayerLimit
from .regression import limit_point_two_layer as limit_point_two_layer
