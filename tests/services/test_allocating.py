"""Blocks that were freed: where the next ones come from."""

import ctypes
import subprocess
import sys

import pytest

ASK = """
import ctypes, sys
from services.allocating import OWN_PAGES, steady
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
libc.mallinfo2.restype = Info
assert sys.argv[1] == "as it is" or steady()
libc.free(libc.malloc(16 * OWN_PAGES))  # a backlog was read
before = libc.mallinfo2().hblks
held = libc.malloc(2 * OWN_PAGES)
print(libc.mallinfo2().hblks - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="not glibc 2.33 or newer")
@pytest.mark.parametrize(("how", "own"), [("steady", 1), ("as it is", 0)])
def test_after_a_large_block_others_still_have_pages_of_their_own(how: str, own: int) -> None:
    said = subprocess.run([sys.executable, "-c", ASK, how], capture_output=True, text=True, check=True, timeout=60)
    assert int(said.stdout) == own
