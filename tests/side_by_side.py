"""`make test`: two pytest runs at once, one a core. Libraries, their adapters and studies in one, services and whole systems in the other.

    python -m tests.side_by_side [pytest options]

The second half's output comes as it is made, the first half's when both are done. What needs the machine for itself runs after
them. The exit status is that of the worst.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LIBRARIES = ("policies", "streaming", "contracts", "golden", "helm", "deploy")  # folders without processes of ours
COMPUTE = ("test_stud", "test_evaluate", "test_bench")  # so begin files of services that make the other half as long
ALONE = ("e2e/test_chaos.py",)  # a whole stack under load, with faults
NO_TESTS = 5  # pytest's exit status: as good as passed for a half that an option has emptied


def parts() -> tuple[list[str], list[str], list[str]]:
    """(files of libraries, files of services, files that run alone): every test file is in exactly one."""
    libraries, services, alone = [], [], []
    for file in sorted(HERE.rglob("test_*.py")):
        folder = file.relative_to(HERE).parts[0]
        pure = folder in LIBRARIES or file.name.startswith(COMPUTE)
        where = alone if file.relative_to(HERE).as_posix() in ALONE else libraries if pure else services
        where.append(str(file.relative_to(HERE.parent)))
    return libraries, services, alone


def main(options: list[str]) -> int:
    libraries, services, alone = parts()
    pytest = [sys.executable, "-m", "pytest", *options]
    with tempfile.TemporaryFile() as kept:
        beside = subprocess.Popen(
            [*pytest, "-p", "no:cacheprovider", *libraries], cwd=HERE.parent, stdout=kept, stderr=subprocess.STDOUT
        )
        try:
            status = subprocess.run([*pytest, *services], cwd=HERE.parent, check=False).returncode
        finally:
            other = beside.wait()
            kept.seek(0)
            sys.stdout.buffer.write(kept.read())
            sys.stdout.flush()
    last = subprocess.run([*pytest, *alone], cwd=HERE.parent, check=False).returncode
    return max((0 if code == NO_TESTS else code for code in (status, other, last)), key=abs)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
