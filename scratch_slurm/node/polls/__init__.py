"""A node's polls of the station: one sealed question, one sealed answer."""
