"""One concept file, every way to use it: drawn, scored, and the front between the pictures' look and the prompt's.

Torch is needed only where a CLIP folder is the scorer.
"""

from perfusion.sweep.drawing import Drawings, Job, identity
from perfusion.sweep.front import Point, pareto_front, points_of
from perfusion.sweep.ranges import BIASES, FIELDS, Setting, all_settings, parse_values, varied
from perfusion.sweep.sheet import grid, plot, ticks
from perfusion.sweep.sweep_run import Sweep, sweep

__all__ = [
    "BIASES",
    "FIELDS",
    "Drawings",
    "Job",
    "Point",
    "Setting",
    "Sweep",
    "all_settings",
    "grid",
    "identity",
    "pareto_front",
    "parse_values",
    "plot",
    "points_of",
    "sweep",
    "ticks",
    "varied",
]
