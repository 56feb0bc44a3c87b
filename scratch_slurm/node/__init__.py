"""Effects on this node: each module owns one outside thing; they do not import each other."""
