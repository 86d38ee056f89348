"""Secure-sum interface, noise and accounting."""
