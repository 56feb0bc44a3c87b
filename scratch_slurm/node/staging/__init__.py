"""Copies on their way into the cache, and the cache that they end in."""
