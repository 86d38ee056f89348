"""Reconstruct the weights of a sliced network: the kept channels take over what the removed ones did, without training.

Layer after layer, every layer that reads a pruned group is fitted anew, so that it answers the sliced model's input as
the full layer answered the full model's: least squares over whole kernels, drawn to the sliced weights by a ridge. Each
layer sees what the sliced layers before it deliver, so their error is corrected on the way. Where a rectifier follows,
an output that the full model closes may be closed to any depth: what is wanted there is the fit of the round before, as
far as it is closed.

Source of the last two: Zhang et al., "Accelerating Very Deep Convolutional Networks", TPAMI 2016, there for low rank.
"""

from __future__ import annotations

RIDGE = 64  # observations that the sliced weights count as: few images must not bend a wide layer
ALIKE = 0.25  # the power of observations an image by which they count as more: those of one image are much alike
ROUNDS = 3  # of fits that know the rectifier; more brought nothing
