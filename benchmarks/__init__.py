"""Side-by-side figures, each one command: `python -m benchmarks NAME`.

A benchmark is one module with a frozen object of settings (`command.Benchmark`), registered in `__main__`, and a
template in `pages/templates`, registered in `results`. Rows go through `record.Record`, so that a benchmark that was
stopped goes on where it was.
"""
