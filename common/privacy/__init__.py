"""This package protects sums by noise in shares, and local answers, and tells what either costs in (ε, δ)."""
