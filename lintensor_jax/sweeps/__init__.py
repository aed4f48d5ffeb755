"""Sweeps: grids of flows on all devices, with labelled results. A killed sweep can be resumed.

from lintensor_jax import sweeps

grid = sweeps.Grid(
    axes=(sweeps.Axis("alpha", alphas), sweeps.Axis("direction", z)),
    start=lambda point: lt.initialization.matching(like, point.direction).scaled(point.alpha),
    problem=lt.Regression(X, y),
)
results = lt.sweep(grid, "results/alphas")     # an xarray.Dataset; the folder is a Zarr store
results.limit.sel(alpha=0.01, method="nearest")
"""

from .descent import Descent as Descent
from .execution.chunks import compute_chunk as compute_chunk
from .execution.chunks import pending as pending
from .execution.drive import Progress as Progress
from .extend import extend as extend
from .grid import Axis as Axis
from .grid import Grid as Grid
from .grid import Point as Point
from .grid import Zip as Zip
from .observables.base import AbstractObservable as AbstractObservable
from .observables.base import Ending as Ending
from .observables.base import Variable as Variable
from .observables.catalogue import Direction as Direction
from .observables.catalogue import DistanceToPrediction as DistanceToPrediction
from .observables.catalogue import Drift as Drift
from .observables.catalogue import Imbalance as Imbalance
from .observables.catalogue import LayerAlignment as LayerAlignment
from .observables.catalogue import Limit as Limit
from .observables.catalogue import LogLoss as LogLoss
from .observables.catalogue import Margins as Margins
from .observables.catalogue import Measured as Measured
from .observables.catalogue import Trajectory as Trajectory
from .observables.effective_limits import EffectiveLimit as EffectiveLimit
from .observables.measures import EffectiveRank as EffectiveRank
from .observables.measures import KernelAlignment as KernelAlignment
from .observables.measures import NonzeroCoefficients as NonzeroCoefficients
from .observables.measures import TestLoss as TestLoss
from .observables.reference_distances import DistanceToMaxMargin as DistanceToMaxMargin
from .observables.reference_distances import DistanceToMinNorm as DistanceToMinNorm
from .plan import METHODS as METHODS
from .plan import STATUSES as STATUSES
from .plan import Options as Options
from .plan import Plan as Plan
from .report.figures import figures as figures
from .report.figures import write_figures as write_figures
from .report.page import write_report as write_report
from .run import resume as resume
from .run import sweep as sweep
from .run import work as work
from .store.errors import SweepError as SweepError
from .store.status import Status as Status
from .store.status import status as status
from .store.verify import Verification as Verification
from .store.verify import verify as verify
