"""losscomp: one formula of a loss in, derived, stable and checked code for every target out."""

__version__ = "0.1.0"
