"""Fit outputs for classes that a submodel does not serve: it never answers with them, they detect out-of-set images."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedcaptor.common.arrays import Floats, Images, Indices
from fedcaptor.common.torch_engine.base import Submodel
from fedcaptor.common.torch_engine.evidence import hooks
from fedcaptor.common.torch_engine.fitting import LeastSquares


def last_layer(submodel: Submodel) -> nn.Linear:
    """Return the layer that makes the logits."""
    layer = submodel.module.get_submodule(submodel.base.groups.output.producers[0])
    assert isinstance(layer, nn.Linear)  # `BaseModel.load` reads the number of classes from it
    return layer


def features(submodel: Submodel, images: Images, batch: int = 512) -> tuple[Floats, npt.NDArray[np.float32]]:
    """Compute what the last layer reads [N, D] of uint8 images [N, H, W, C], and the logits [N, k]."""
    read: list[npt.NDArray[Any]] = []

    def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        read.append(inputs[0].detach().double().numpy())

    with hooks([last_layer(submodel).register_forward_pre_hook(hook)]):
        z = [submodel.scores(images[start : start + batch]) for start in range(0, len(images), batch)]
    return np.concatenate(read), np.concatenate(z)


def refitted(submodel: Submodel, images: Images, classes: Indices, ridge: float = 50) -> Submodel:
    """Copy a submodel, with outputs for `classes` that follow the base's logits on unlabelled `images` of all classes.

    Weight reconstruction fits every output on images of the served classes alone, where those of the others have least
    to say. Here the last layer's weights of these outputs are fitted anew in closed form: ridge regression of the
    base's logits on what the submodel's last layer reads, towards the present weights, which count as `ridge` images.
    All other outputs stay as they are. `images`: uint8 [N, H, W, C].
    """
    rows = np.searchsorted(submodel.classes, classes)
    result = Submodel(submodel.base, submodel.plan, copy.deepcopy(submodel.module))
    last, wanted = last_layer(result), torch.from_numpy(submodel.base.scores(images)[:, classes])
    x = torch.from_numpy(features(submodel, images)[0]).to(last.weight.dtype)
    with torch.no_grad():
        constant = last.bias is not None
        last.weight[rows], shift = LeastSquares(x, last.weight[rows], ridge, constant).fit(wanted)
        if constant:
            last.bias[rows] = shift
    return result
