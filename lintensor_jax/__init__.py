"""A gradient-flow laboratory for linear tensor networks.

Importing this package changes no global state of JAX and initialises no backend. Work in float64:
``jax.config.update("jax_enable_x64", True)``.
"""

from . import initialization as initialization
from ._version import __version__ as __version__
from .losses import ExponentialLoss as ExponentialLoss
from .losses import LogisticLoss as LogisticLoss
from .networks import AbstractNetwork as AbstractNetwork
from .networks import ConvolutionalNetwork as ConvolutionalNetwork
from .networks import DiagonalNetwork as DiagonalNetwork
from .networks import FullyConnectedNetwork as FullyConnectedNetwork
from .networks import TensorNetwork as TensorNetwork
from .networks import constant as constant
from .problems import Classification as Classification
from .problems import Regression as Regression
