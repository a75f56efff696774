"""Settled decisions outside the service: files as they settle, exports on demand."""

from importlib.util import find_spec

from policies.errors import Rejected


def need_pyarrow() -> None:
    """Raises Rejected where this installation cannot write Parquet: it comes with the extra that learns."""
    if find_spec("pyarrow") is None:
        raise Rejected("Settled decisions need pyarrow: pip install 'slatewise[learning]'", code="missing")
