"""Simulation of whole populations: what owners meet, phones in one process, evaluation by true labels, reports."""
