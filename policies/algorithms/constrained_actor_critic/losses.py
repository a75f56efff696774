"""The losses, in torch: critics, auxiliary policies, and the main policy of either mode.

    δ_i = r_i + γ_i V_i(s′) − V_i(s)                       r_i a slate's reward, signed and in its running scale
    A_it = reward of slot t − mean of the slate's + δ_i / k, divided by its running standard deviation
    ρ_it = π_i(a_t ∣ s, a_<t) / β(a_t ∣ s, a_<t)           the slot's conditional, first order in a slate
    critics      Σ_i δ_i²
    stage 1      −E_β[min(ρ_i, c) A_i log π_i] + κ_i KL(π_i‖β)
    stage 2      −E_β[min(Π π_i^(λ_i/L) / β, c) exp(min(A_1/L, log 20)) log π_1],  L = Σ λ_i: the closed form of the best
                 policy near all auxiliaries; without any, near β
    lagrangian   −E_β[min(ρ_1, c) (A_1 + Σ μ_i A_i)/(1 + Σ μ_i) log π_1] + κ_1 KL(π_1‖β)

Sums over slots, means over decisions. KL(π‖β) = E_β[ρ log ρ − ρ + 1], whose gradient is E_β[ρ log ρ ∇log π]. Everything
but log π and V is held constant. β is the logged propensity, never a model of it.

Source   Cai et al. 2023 (arXiv 2302.01680); Lagrangian mode arXiv 2310.04373
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LARGEST = 2.995732  # log 20: where exponents are clipped
LOOKED_AT = 64  # decisions whose entropy is told when nothing is learned from it
GONE = -1e9  # logit of what cannot be drawn
LEAST = 1e-300  # share of the likeliest below which float64 ends: 690 nats
CONTROLS = ("scale", "deviation", "bound", "multiplier")  # columns (B, P) that the trainer sets: all rows the same
PER_POLICY = ("reward", "square", "advantage", "kl", "critic", "value", "target", "clipped", "entropy", "actor")


@dataclass(frozen=True)
class Terms:
    """What does not change while a policy is trained. `discounts` (P,), `strengths` (P − 1,); π = softmax(z / temperature), as it is
    served."""

    mode: str
    discounts: list[float]
    strengths: list[float]
    clip: float
    entropy: float
    temperature: float = 1.0


@dataclass(frozen=True)
class Outputs:
    """What the network says of B decisions: z (B, P, n), value and coming V(s′) (B, P)."""

    z: Tensor
    value: Tensor
    coming: Tensor


def losses(terms: Terms, out: Outputs, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The loss, and what was measured on the way: means of `PER_POLICY`, (len(PER_POLICY) × P,)."""
    present, beta = batch["present"], batch["log_propensities"]  # (B, k)
    scale, deviation, bound, multiplier = (batch[name][0] for name in CONTROLS)  # (P,)
    slots = present.sum(dim=1, keepdim=True).clamp(min=1)  # (B, 1)
    each = batch["rewards"] * present[:, :, None] / scale  # (B, k, P)
    reward = each.sum(dim=1)
    target = reward + torch.tensor(terms.discounts) * out.coming
    missed = target - out.value
    critic = missed.square().mean(dim=0)

    delta = missed.detach()
    raw = each - (reward / slots)[:, None] + (delta / slots)[:, None]  # (B, k, P)
    advantage = raw / deviation
    z = out.z / terms.temperature
    log = conditionals(z, batch["allowed"], batch["slate"], batch["log_left_out"])
    held = log.detach()
    away = (held - beta[:, :, None]).clamp(max=LARGEST)
    ratio = away.exp()
    shown = present[:, :, None]

    def mean(x: Tensor) -> Tensor:
        """Over decisions, of sums over slots: (P',)."""
        return (x * shown).sum(dim=1).mean(dim=0)

    pushed = ratio.clamp(max=terms.clip) * advantage
    near = bound * ratio * away  # κ times the gradient of KL
    if terms.mode == "lagrangian":
        mu = multiplier[1:]
        wanted = (advantage[:, :, 0] + (mu * advantage[:, :, 1:]).sum(dim=2)) / (1 + mu.sum())
        pushed = torch.cat([(ratio[:, :, 0].clamp(max=terms.clip) * wanted)[:, :, None], pushed[:, :, 1:]], dim=2)
        actor = mean((near - pushed) * log)
    else:
        lambdas = torch.tensor(terms.strengths)
        total = lambdas.sum() if len(lambdas) else torch.tensor(1.0)
        between = ((lambdas / total) * held[:, :, 1:]).sum(dim=2) - beta if len(lambdas) else torch.zeros_like(beta)
        weight = between.clamp(max=LARGEST).exp().clamp(max=terms.clip)
        weight = weight * (advantage[:, :, 0] / total).clamp(max=LARGEST).exp()
        main = mean((-weight * log[:, :, 0])[:, :, None])
        actor = torch.cat([main, mean((near - pushed)[:, :, 1:] * log[:, :, 1:])])

    some = slice(None) if terms.entropy else slice(LOOKED_AT)
    first = torch.log_softmax(z[some].masked_fill(~batch["allowed"][some, None], GONE), dim=2)
    entropy = -(first.exp() * first).sum(dim=2).mean(dim=0)
    loss = actor.sum() + critic.sum() - terms.entropy * entropy.sum()

    count = present.sum().clamp(min=1)
    kl = ((ratio * away - ratio + 1) * shown).sum(dim=(0, 1)) / count
    clipped = ((ratio > terms.clip) * shown).sum(dim=(0, 1)) / count
    square = (raw.square() * shown).sum(dim=(0, 1)) / count
    unscaled = reward * scale
    measured = [
        unscaled.mean(dim=0),
        unscaled.square().mean(dim=0),
        square,
        kl,
        critic,
        out.value.mean(dim=0),
        target.mean(dim=0),
        clipped,
        entropy,
        actor,
    ]
    return loss, torch.cat([m.detach() for m in measured])


def conditionals(z: Tensor, allowed: Tensor, slate: Tensor, left_out: Tensor) -> Tensor:
    """log π of each slot's item given the slots before, (B, k, P): softmax over what was left to draw from.

    z (B, P, n), allowed (B, n), slate (B, k) candidate rows or −1; left_out (B,) log of how many undrawn candidates each undrawn
    one stands for. What is left at slot t are the undrawn and the items of slots t and later: a sum from the back, in
    which nothing cancels; in float64, whose exponents reach as far as logits do that anything is learned from.
    """
    rows = slate.clamp(min=0)
    drawable = (slate >= 0) & torch.gather(allowed, 1, rows)  # pins take no one's place
    drawn = torch.zeros(allowed.shape).scatter_add_(1, rows, drawable.to(z.dtype))
    undrawn = allowed & (drawn == 0)
    rest = torch.logsumexp(z.masked_fill(~undrawn[:, None], GONE), dim=2, keepdim=True) + left_out[:, None, None]
    chosen = torch.gather(z, 2, rows[:, None].expand(-1, z.shape[1], -1))  # (B, P, k)
    waiting = torch.where(drawable[:, None], chosen, GONE)
    parts = torch.cat([rest, waiting.flip(2)], dim=2).double()
    top = parts.detach().amax(dim=2, keepdim=True)
    total = ((parts - top).exp().cumsum(dim=2)[:, :, 1:].clamp(min=LEAST).log() + top).flip(2)
    return (chosen - total.float()).transpose(1, 2)
