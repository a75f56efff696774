"""Memory that was freed goes back to the system, in processes that read the log in batches of changing size.

glibc gives blocks above a threshold pages of their own, and takes them back when they are freed; smaller ones come from heaps that
threads share. The threshold follows the largest block ever freed, up to 32 MB: after one backlog, batches of a few megabytes are cut
out of the heaps, between rows that live for minutes, and the holes they leave fit nothing else. Of 240,000 records in four
partitions, with a backlog now and then, 207 MB lay in holes at the end and grew; with a threshold that stays, 26 MB, at the same CPU.
"""

import ctypes
import sys

M_MMAP_THRESHOLD = -3  # mallopt(3)
# bytes from which on a block has pages of its own; a batch of steady traffic has a third of it, a backlog six times
OWN_PAGES = 1 << 20


def steady() -> bool:
    """Keep the threshold where it is put; whether this C library has one. Early: what was freed before has moved it."""
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has another allocator
    return mallopt is not None and mallopt(M_MMAP_THRESHOLD, OWN_PAGES) == 1
