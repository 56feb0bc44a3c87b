"""Pins and events, kept in one file."""
