"""How rows become a page: a template a benchmark, and a module where rows are selected or compared."""
