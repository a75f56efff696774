"""Real processes for tests: Python text run by the interpreter that runs the tests, and killed where it says."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
KILLED = -9
DEADLINE_SECONDS = 120
BEGIN = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A process running `script` after BEGIN; its arguments are sys.argv[2:]."""
    command = [sys.executable, "-c", BEGIN + script, str(ROOT), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


@contextmanager
def running(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that is killed at the end, if it has not ended."""
    with start(script, *arguments) as child:
        try:
            yield child
        finally:
            child.kill()


def run(script: str, *arguments: object) -> int:
    """Exit status of a process that ends by itself, or by its own kill -9."""
    with running(script, *arguments) as child:
        return child.wait(DEADLINE_SECONDS)


def said(child: subprocess.Popen[str]) -> str:
    """The next line a process prints."""
    assert child.stdout is not None
    return child.stdout.readline().strip()
