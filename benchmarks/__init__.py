"""Side-by-side figures, each one command: `python -m benchmarks NAME`."""
