"""Networks: Equinox modules whose linear coefficients are multilinear in their layers."""

from .base import AbstractNetwork as AbstractNetwork
from .base import coefficients_and_pullback as coefficients_and_pullback
from .base import constant as constant
from .base import scaled as scaled
from .base import split as split
from .convolutional import ConvolutionalNetwork as ConvolutionalNetwork
from .decomposition import AssumptionFails as AssumptionFails
from .decomposition import OrthogonalDecomposition as OrthogonalDecomposition
from .decomposition import decompose_tensor as decompose_tensor
from .decomposition import dense_tensor as dense_tensor
from .diagonal import DiagonalNetwork as DiagonalNetwork
from .differential import DifferentialDiagonalNetwork as DifferentialDiagonalNetwork
from .effective_start import EffectiveStart as EffectiveStart
from .effective_start import Measured as Measured
from .effective_start import TwoLayers as TwoLayers
from .effective_start import two_layers_of as two_layers_of
from .factorization import MatrixFactorizationNetwork as MatrixFactorizationNetwork
from .factorization import SensingDecomposition as SensingDecomposition
from .factorization import sensing_decomposition as sensing_decomposition
from .files import load as load
from .files import save as save
from .fully_connected import FullyConnectedNetwork as FullyConnectedNetwork
from .orthogonal import OrthogonalNetwork as OrthogonalNetwork
from .tensor import TensorNetwork as TensorNetwork
