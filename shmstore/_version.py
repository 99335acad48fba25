"""The version: the one place that says it, read by the build and at run time. Must know nothing else."""

__version__ = "0.1.0"
