"""The reports of simulated runs: HTML pages that need nothing else."""

from fedcaptor.simulations.report.comparison_page import COMPARISON, write_comparison
from fedcaptor.simulations.report.page import write_report

__all__ = ["COMPARISON", "write_comparison", "write_report"]
