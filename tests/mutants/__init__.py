"""Mistakes that the CPU kernels might have: `make mutants` says which tests find each of them.

A mutant replaces one expression of the source, the one between « and », by another; what stands around it
says where. None writes where the right kernels would not, so that the tests go on and all that find it can be
counted.
"""

from . import layers, products, recurrence
from .mutant import EVERYWHERE, Mutant

__all__ = ["EVERYWHERE", "MUTANTS", "Mutant"]

MUTANTS = products.MUTANTS + layers.MUTANTS + recurrence.MUTANTS
