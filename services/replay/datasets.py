"""Where data sets lie: a path argument or SLATEWISE_DATASETS, never a place written in the code (licences differ)."""

import os
from pathlib import Path

import click

VARIABLE = "SLATEWISE_DATASETS"
ORIGINS = {  # file that must be there → what it is and what may be done with it
    "jester/jester5k.csv": "Jester 5k, user,joke,rating (Goldberg et al. 2001; research use with citation)",
    "hillstrom/hillstrom.csv": "Hillstrom e-mail challenge (public, no stated licence: do not redistribute)",
    "obd/random/all/all.csv": "Open Bandit Dataset, small version (Saito et al. 2021; CC BY 4.0)",
    "obd/bts/all/all.csv": "Open Bandit Dataset, small version (Saito et al. 2021; CC BY 4.0)",
    "coat/test.ascii": "Coat shopping data (Schnabel et al. 2016; research use)",
}


def located(data: Path | None, file: str) -> Path:
    """The file inside `data`, or inside SLATEWISE_DATASETS. Raises click.ClickException saying what to do."""
    root = data or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    what = ORIGINS.get(file, file)
    if root is None:
        raise click.ClickException(f"{what}: say where it lies with --data DIR or {VARIABLE}=DIR (expected DIR/{file})")
    found = root / file
    if not found.is_file():
        raise click.ClickException(f"{what}: there is no {found}")
    return found
