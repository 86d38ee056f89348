"""What closing one filter does to a network's loss, measured; layers that come before its readers are not run again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from fedcaptor.common.arrays import Indices
from fedcaptor.common.groups import Group
from fedcaptor.common.torch_engine.evidence import hooks
from fedcaptor.common.torch_engine.network import CONVOLUTION
from fedcaptor.common.torch_engine.scores import gate_hook


@dataclass(frozen=True, eq=False)
class Closing:
    """`x` [N, C, H, W]: normalised images, `labels` [N] the true ones. `outputs`: of each convolution and linear layer
    in execution order. `losses` [N]: cross-entropy of each image in the whole network.
    """

    model: nn.Module
    x: torch.Tensor
    labels: torch.Tensor
    outputs: Mapping[str, torch.Tensor]
    losses: torch.Tensor

    @classmethod
    @torch.no_grad()
    def on(cls, model: nn.Module, x: torch.Tensor, labels: Indices) -> Closing:
        """Runs the whole network once."""
        outputs: dict[str, torch.Tensor] = {}

        def watch(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
                outputs[name] = output.clone()  # a later in-place activation would change it

            return hook

        layers = {name: m for name, m in model.named_modules() if isinstance(m, CONVOLUTION | nn.Linear)}
        targets = torch.as_tensor(labels, dtype=torch.long)
        with hooks([module.register_forward_hook(watch(name)) for name, module in layers.items()]):
            losses = functional.cross_entropy(model(x), targets, reduction="none")
        return cls(model, x, targets, outputs, losses)

    @torch.no_grad()
    def changes(self, group: Group, channels: Sequence[int]) -> npt.NDArray[np.float32]:
        """Rise in each image's loss [channels, N] when one of these channels alone is zero wherever it is read."""
        modules, readers = dict(self.model.named_modules()), [consumer.layer for consumer in group.consumers]
        order = list(self.outputs)
        before = order[: min(order.index(layer) for layer in readers)]
        gate = torch.ones(1, group.channels)
        handles = [modules[c.layer].register_forward_pre_hook(gate_hook(c, gate)) for c in group.consumers]
        found = []
        with hooks(handles), _answering(modules, {name: self.outputs[name] for name in before}):
            for channel in channels:
                gate[:] = 1
                gate[:, channel] = 0
                found.append(functional.cross_entropy(self.model(self.x), self.labels, reduction="none") - self.losses)
        return torch.stack(found).numpy()


@contextlib.contextmanager
def _answering(modules: Mapping[str, nn.Module], outputs: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Inside the block these layers compute nothing and answer copies of `outputs`."""

    def constant(output: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda _x: output.clone()

    try:
        for name, output in outputs.items():
            modules[name].forward = constant(output)
        yield
    finally:
        for name in outputs:
            modules[name].__dict__.pop("forward", None)
