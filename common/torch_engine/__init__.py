"""Everything that needs torch: model registry, tracing, calibration statistics, pruning, tuning, export.

Import it only where torch is present.
"""
