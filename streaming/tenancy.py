"""Whose a state record is. Two tenants are two deployments with stores of their own; this is how one finds out that it was given the
other's: the first process that writes says whose the record is, and from then on processes of another tenant do not start on it.

The log says so record by record (`streaming.join`: `other_tenant`), bundles by their learner keys, counters and files by their names.
"""

from policies.errors import Rejected
from streaming.ports import State

DEFAULT = "default"  # of a deployment that names none
KIND, KEY = "tenant", "owner"
AT = "SLATEWISE_TENANT"


def claim(state: State, tenant: str) -> None:
    """Say whose the record is, unless it is said. Raises Rejected('other_tenant'), Unavailable."""
    if state.get(KIND, KEY) is None:
        try:
            state.put([(KIND, KEY, tenant.encode())], expect=0)
        except Rejected as error:
            if error.status != 409:
                raise  # else somebody was faster: it is theirs, and may be ours all the same
    check(state, tenant)


def check(state: State, tenant: str) -> None:
    """Raises Rejected('other_tenant') where the record is said to be somebody else's, Unavailable."""
    held = state.get(KIND, KEY)
    if held is not None and held.value is not None and held.value.decode() != tenant:
        raise Rejected(
            f"The state record belongs to the tenant {held.value.decode()!r}, this process to {tenant!r}: each has log, state"
            " and bundles of its own",
            at=AT,
            code="other_tenant",
            status=403,
        )
