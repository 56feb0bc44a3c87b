"""Where images come from. Each kind of origin is one module."""
