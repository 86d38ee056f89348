"""A phone's engine without torch: ONNX Runtime runs networks, numpy does the rest.

`fedcaptor.client.engine` says what an engine is. Results agree with those of `fedcaptor.client.torch_engine` but for
rounding, with one exception: it does not tune submodels.
"""

from fedcaptor.client.onnx_engine.engine import OnnxEngine
from fedcaptor.client.onnx_engine.network import Network

__all__ = ["Network", "OnnxEngine"]
