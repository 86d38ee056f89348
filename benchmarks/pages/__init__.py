"""How rows become a page: one module a benchmark, with `render(record) -> Section`."""
