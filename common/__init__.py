"""What server and phone must agree on, or both run. Numpy only; torch lives in `common.torch_engine`."""
