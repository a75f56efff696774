"""The torch side of `network.py`, and what is minimised.

worker   π = softmax(score / temperature), as it is served
         δ = r̃ + γ V(s′) − V(s) within the session, r̃ = Σ over slots of r + shaping · novelty · [r > 0]
         A_t = slot's r̃ − the slate's mean + δ/k, in running standard deviations
         −Σ_t min(π/β, c) A_t log π(item_t | state, goal) − η H, π and β conditional on the slots before and the goal
value    ½ δ²
goals    ½ (Q(s, goal) − G)², G the stretch's return in running standard deviations, Q = body(s) (P + κ (I − P))
         P projects on parabolas over the goals' numbers: goals are steps of one scale, so what one brought says something of
         its neighbours, and a goal that is hardly drawn any more is still judged. κ < 1: what is rough is learned slowly
manager  −Σ_g π(g | s) (Q(s, g) − Σ π Q) − η H: every goal's advantage, so that no ratio of goals is needed
"""

from collections.abc import Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
FORBIDDEN = -1e9
ROUGH = 0.3  # κ: a step of the optimiser moves what no parabola says by its square, a tenth, as much


def body(w: Weights, name: str, x: Tensor) -> Tensor:
    """(B, out), see `network.body`."""
    one = torch.cat([torch.ones(len(x), 1), x], dim=1)
    return torch.cat([one, torch.relu(one @ w[f"{name}_in"])], dim=1) @ w[f"{name}_out"]


def scores(
    w: Weights, phi: Tensor, items: Tensor, new: Tensor, goal: Tensor, strengths: Tensor, novel: float
) -> Tensor:
    """(B, n), see `network.scores`."""
    wants = body(w, "worker", phi)
    strength = novel * w["own"] + goal @ strengths
    return torch.bmm(items, wants[:, :, None])[:, :, 0] + strength[:, None] * new


def value(w: Weights, phi: Tensor, goal: Tensor) -> Tensor:
    return body(w, "value", torch.cat([phi, goal], dim=1))[:, 0]


def worker(
    w: Weights,
    batch: Mapping[str, Tensor],
    strengths: Tensor,
    *,
    novel: float,
    discount: float,
    clip: float,
    entropy: float,
    temperature: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss, and what was measured. `deviation` in the batch is the advantage's running standard deviation."""
    goal, present, reward = batch["goal"], batch["present"], batch["shaped"]
    now = value(w, batch["phi"], goal)
    with torch.no_grad():
        later = value(w, batch["next_phi"], goal) * (1 - batch["over"])
    delta = reward.sum(dim=1) + discount * later - now
    slots = present.sum(dim=1).clamp(min=1)
    advantage = reward - (reward.sum(dim=1) / slots)[:, None] + (delta.detach() / slots)[:, None]
    scaled = (advantage / batch["deviation"]).clamp(-10, 10)  # a reward beyond ten deviations says no more than ten

    left = scores(w, batch["phi"], batch["items"], batch["new"], goal, strengths, novel) / temperature
    left = left.masked_fill(batch["allowed"] == 0, FORBIDDEN)
    loss, spread, clipped = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for t in range(present.shape[1]):
        logs = torch.log_softmax(left, dim=1)
        row = batch["slate"][:, t].clamp(min=0)
        chosen = logs.gather(1, row[:, None])[:, 0]
        ratio = torch.exp((chosen.detach() - batch["log_propensities"][:, t]).clamp(max=20))
        counts = present[:, t]
        loss = loss - (ratio.clamp(max=clip) * scaled[:, t] * chosen * counts).sum()
        spread = spread - (logs.exp() * logs.clamp(min=-50)).sum(dim=1).mul(counts).sum()
        clipped = clipped + ((ratio > clip) * counts).sum()
        taken = torch.nn.functional.one_hot(row, left.shape[1]) * (batch["slate"][:, t : t + 1] >= 0)
        left = left.masked_fill(taken > 0, FORBIDDEN)
    total = present.sum().clamp(min=1)
    actor = (loss - entropy * spread) / total
    unit = batch["deviation"].mean()
    critic = 0.5 * ((delta / unit) ** 2).clamp(max=100).mean()
    seen = {
        "critic_loss": critic,
        "actor_loss": actor,
        "entropy": spread / total,
        "clipped_share": clipped / total,
        "advantage": (advantage**2 * present).sum() / total,
    }
    return actor + critic, seen


def neighbours(goals: int) -> Tensor:
    """P + κ (I − P), (g, g)."""
    basis, _ = torch.linalg.qr(torch.vander(torch.linspace(-1, 1, goals), min(3, goals)))
    smooth = basis @ basis.T
    return smooth + ROUGH * (torch.eye(goals) - smooth)


def manager(
    w: Weights, batch: Mapping[str, Tensor], alike: Tensor, *, entropy: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss, and what was measured; `return` is in running standard deviations from the running mean, `alike` is `neighbours`."""
    q = body(w, "goals", batch["told"]) @ alike
    took = (q * batch["goal"]).sum(dim=1)
    critic = 0.5 * ((took - batch["return"].clamp(-10, 10)) ** 2).mean()
    logs = torch.log_softmax(body(w, "manager", batch["told"]), dim=1)
    p, fixed = logs.exp(), q.detach()
    advantage = fixed - (p.detach() * fixed).sum(dim=1, keepdim=True)
    spread = -(p * logs).sum(dim=1).mean()
    actor = -(p * advantage).sum(dim=1).mean() - entropy * spread
    return critic + actor, {"goal_critic_loss": critic, "goal_actor_loss": actor, "goal_entropy": spread}
