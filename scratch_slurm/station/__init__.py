"""The station: what nodes poll."""
