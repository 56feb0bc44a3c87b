"""What the kernel shows and does: loop devices, mounts, counters, limits."""
