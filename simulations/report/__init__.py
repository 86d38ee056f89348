"""The report of a simulated run: one HTML page that needs nothing else."""

from fedcaptor.simulations.report.page import write_report

__all__ = ["write_report"]
