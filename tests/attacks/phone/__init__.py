"""Attacks of phones that send what they like."""
