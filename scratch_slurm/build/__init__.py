"""A directory becomes an image, and the image is published. Effects of `scratch-slurm build` alone."""
