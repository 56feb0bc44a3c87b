"""The node daemon: observes, plans, acts."""
