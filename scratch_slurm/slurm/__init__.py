"""Slurm, reached through one small interface. Must not know the node's own things or the daemon."""
