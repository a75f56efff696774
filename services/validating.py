"""`slatewise validate`: what is wrong with a config folder or file, and what to think about where nothing is."""

from pathlib import Path

from streaming.configuration import ConfigInvalid, advice, load_folder, parse
from streaming.experiments import load_experiments


def check(config: Path) -> tuple[list[str], list[str]]:
    """(what to tell, mistakes), one line each."""
    try:
        surfaces = load_folder(config) if config.is_dir() else parse(config.read_text(), str(config))
        experiments = load_experiments(config, {surface.surface: surface for surface in surfaces})
    except ConfigInvalid as error:
        return [], [str(mistake) for mistake in error.mistakes]
    if not surfaces:
        return [], [f"{config}: no surface found; expected at least one *.yaml document with `surface:`"]
    said = []
    for surface in surfaces:
        said.append(f"{surface.surface}: {len(surface.policies)} policies, live {surface.live or surface.fallback}")
        said += [f"  {line}" for line in advice(surface)]
    for experiment in experiments:
        arms = ", ".join(f"{name} {arm.share:.2%}" for name, arm in experiment.arms.items())
        said.append(f"experiment {experiment.experiment} on {experiment.surface}: {arms}")
    return said, []
