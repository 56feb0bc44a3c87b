"""Prolog and epilog: light imports, they run in every annotated job."""
