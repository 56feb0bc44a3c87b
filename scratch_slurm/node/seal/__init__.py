"""Seals on messages between nodes and the station: of whom they are, that they are fresh and whole."""
