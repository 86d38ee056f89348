"""Image sources and the one deterministic split."""
