"""Networks: Equinox modules whose linear coefficients are multilinear in their layers."""

from .base import AbstractNetwork as AbstractNetwork
from .base import coefficients_and_pullback as coefficients_and_pullback
from .base import constant as constant
from .base import scaled as scaled
from .base import split as split
from .convolutional import ConvolutionalNetwork as ConvolutionalNetwork
from .diagonal import DiagonalNetwork as DiagonalNetwork
from .fully_connected import FullyConnectedNetwork as FullyConnectedNetwork
from .tensor import TensorNetwork as TensorNetwork
