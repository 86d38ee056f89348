"""This package reads image sources and splits them, in one deterministic way."""
