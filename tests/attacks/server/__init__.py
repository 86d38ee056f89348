"""Attacks of a server that sends what it likes and keeps what it gets."""
