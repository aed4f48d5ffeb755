"""The papers' experiments, one package each; `framework.Experiment` says what each one defines."""

from .framework import EXPERIMENTS as EXPERIMENTS
from .framework import find as find
