"""Sweeps: grids of flows, labelled, resumable, on every device.

from lintensor_jax import sweeps

grid = sweeps.Grid(
    axes=(sweeps.Axis("alpha", alphas), sweeps.Axis("direction", z)),
    start=lambda point: lt.initialization.matching(like, point.direction).scaled(point.alpha),
    problem=lt.Regression(X, y),
)
results = lt.sweep(grid, "results/alphas")     # an xarray.Dataset; the folder is a Zarr store
results.limit.sel(alpha=0.01, method="nearest")
"""

from .drawing import figures as figures
from .drawing import write_figures as write_figures
from .errors import SweepError as SweepError
from .grid import Axis as Axis
from .grid import Grid as Grid
from .grid import Point as Point
from .grid import Zip as Zip
from .observables import AbstractObservable as AbstractObservable
from .observables import Direction as Direction
from .observables import DistanceToPrediction as DistanceToPrediction
from .observables import Drift as Drift
from .observables import Ending as Ending
from .observables import Imbalance as Imbalance
from .observables import LayerAlignment as LayerAlignment
from .observables import Limit as Limit
from .observables import LogLoss as LogLoss
from .observables import Margins as Margins
from .observables import Measured as Measured
from .observables import Trajectory as Trajectory
from .observables import Variable as Variable
from .plan import METHODS as METHODS
from .plan import STATUSES as STATUSES
from .plan import Options as Options
from .plan import Plan as Plan
from .report import write_report as write_report
from .run import resume as resume
from .run import sweep as sweep
from .schedule import Progress as Progress
from .state import Status as Status
from .state import status as status
