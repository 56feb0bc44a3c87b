"""scratch-slurm: the node-local SSDs of a Slurm cluster as one dataset cache."""

__version__ = "0.1.0"
