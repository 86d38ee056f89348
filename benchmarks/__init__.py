"""Side-by-side figures, each one command: `python -m benchmarks NAME`.

A benchmark is one module with a command, registered in `__main__`, and `render(record)`, registered in `results`. Rows
go through `record.Record`, so that a benchmark that was stopped goes on where it was.
"""
