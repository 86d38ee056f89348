"""What server and phone must agree on, or both run. Nothing here is of one side alone.

Numpy and scipy; torch lives in `fedcaptor.common.torch_engine`, Flower's records in `fedcaptor.common.wire`.
"""
