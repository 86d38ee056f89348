"""What server and phone must agree on, or both run. Numpy only; torch lives in `fedcaptor.common.torch_engine`."""
