"""This package runs on a phone: usage log, filter scores, ledger, personal step."""
