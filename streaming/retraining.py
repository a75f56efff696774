"""A recorded order once more, from nothing, beside its owner: what trainers have come to is a function of it, or is not."""

from collections.abc import Mapping, Sequence

from policies.types import Arrays
from streaming.configuration import Configs
from streaming.ports import Commit, Outbox
from streaming.settle import Settlements
from streaming.trainer import PAGE, Source, Training


def retrained(
    order: Outbox, entries: int, into: Settlements, sources: Sequence[Source], configs: Configs, identity: str
) -> Training:
    """Trainers that have applied the first `entries` of an order, with a checkpoint in `into`, an empty store.

    Raises Corrupt('number_out_of_range') when the order has lost its beginning, or the sources rows that it names.
    """
    number = 0
    while number < entries:
        rows = [value for _, value in order.pull(number, min(PAGE, entries - number))]
        into.commit(Commit(partition=0, offset=0, clock=0.0, epoch=0, outbox=(number, rows)))
        number += len(rows)
    training = Training(into, sources, configs, epoch=1, identity=identity)
    training.recover()
    training.checkpoint()
    return training


def differences(one: Mapping[str, Arrays], other: Mapping[str, Arrays]) -> list[str]:
    """Names of arrays that are not the same in both, to the last bit; a name that only one has is among them."""
    flat = [{f"{key}/{name}": a for key, arrays in each.items() for name, a in arrays.items()} for each in (one, other)]
    bits = [{name: (a.dtype.str, a.shape, a.tobytes()) for name, a in each.items()} for each in flat]
    return [name for name in sorted(bits[0].keys() | bits[1].keys()) if bits[0].get(name) != bits[1].get(name)]
