"""Sums with noise in shares, local answers, and what either costs in (ε, δ)."""
