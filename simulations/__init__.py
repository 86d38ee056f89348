"""Populations of phones, scenarios, the runner and its report."""
