"""Adam on named tensors, whose moments are named arrays in a trainer's state. Imported by who trains; needs torch.

Source   Kingma & Ba, ICLR 2015
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

FIRST, SECOND, TINY = 0.9, 0.999, 1e-8  # β₁, β₂ and ε, as in the paper


def adam(
    parameters: Mapping[str, Tensor],
    moments: Sequence[Mapping[str, Tensor]],
    gradients: Mapping[str, Tensor],
    step: int,
    learning_rate: float,
) -> None:
    """The `step`-th step, counted from 1: parameters and both moments move in place."""
    rate = learning_rate * math.sqrt(1 - SECOND**step) / (1 - FIRST**step)
    first, second = moments
    with torch.no_grad():
        for name, gradient in gradients.items():
            first[name].lerp_(gradient, 1 - FIRST)
            second[name].mul_(SECOND).addcmul_(gradient, gradient, value=1 - SECOND)
            parameters[name].addcdiv_(first[name], second[name].sqrt() + TINY, value=-rate)
