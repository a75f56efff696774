"""`slatewise train`: a policy with a trainer learns from files of settled decisions before it decides anything.

What it comes to is where the learning service goes on from, and a first bundle, unless the policy has one. The service must not
run meanwhile: its trainers would be shut out, and say so.
"""

import time
from typing import Any

import click

from policies.errors import Rejected
from services.cli import settings_options


@click.command("train")
@click.argument("log")
@click.option(
    "--policy",
    required=True,
    help="Of the configuration: surface/policy, or the policy's name where it is the only one.",
)
@click.option(
    "--epochs", default=1, show_default=True, type=click.IntRange(1), help="How often the log is gone through."
)
@settings_options
def command(log: str, policy: str, epochs: int, **flags: Any) -> None:
    """Train a policy from Parquet files of settled decisions (LOG: a folder, a file, or a URL that fsspec opens)."""
    from rich.console import Console

    from services.configuring import apply_folder
    from services.experiences.sources import from_files
    from services.learning.regaining import regained
    from services.settings import Settings
    from services.wiring import open_bundles, open_log, open_uploads, own_state
    from streaming.configuration import CompiledPolicy, Configs
    from streaming.experiences import Experiences
    from streaming.looking_up import encoded_items
    from streaming.parquet_reading import experiences_of
    from streaming.pretraining import Pretraining
    from streaming.publish import Publisher, pointer_name
    from streaming.settle import Settler
    from streaming.trainer import Training
    from streaming.training_uploads import FOLDER, TrainingUploads, take

    settings = Settings.load(**flags)
    state, events, configs, console = own_state(settings), open_log(settings), Configs(settings.tenant), Console()
    if settings.config is not None:
        apply_folder(state, settings.config)
    configs.follow(state)
    found: dict[str, CompiledPolicy] = {
        pointer_name(one): one
        for name in configs.surfaces()
        if (compiled := configs.current(name)) is not None
        for one in compiled.policies.values()
        if one.algorithm.trainer is not None
    }
    named = [name for name in found if policy in (name, name.partition("/")[2])]
    if len(named) != 1:
        raise Rejected(
            f"Expected one of: {', '.join(found) or 'none has a trainer'}", at="--policy", code="unknown_policy"
        )
    chosen = found[named[0]]
    compiled = configs.current(named[0].partition("/")[0])
    assert compiled is not None  # its policy was found
    items = encoded_items(state, chosen.problem.encoder)
    course = Pretraining(chosen, compiled.surface.session_timeout_seconds, items)
    began = time.monotonic()
    for number in range(1, epochs + 1):
        before = course.transitions
        course.epoch(one for table in from_files(log) for one in experiences_of(table))
        if not course.transitions:
            raise Rejected(
                f"Nothing to learn from: {dict(course.outcomes) or 'no decision of this surface'}",
                at="LOG",
                code="empty",
            )
        said = " ".join(f"{name}={value:.4g}" for name, value in sorted(course.metrics.items()))
        console.print(f"epoch {number}: {course.transitions - before} transitions  {said}", highlight=False)
    seconds = time.monotonic() - began
    console.print(f"{course.transitions / seconds:.0f} transitions/s; {dict(course.outcomes)}", highlight=False)

    uploads = open_uploads(settings)
    order, outboxes = regained(settings, events.identity, uploads.epochs().get(FOLDER, 0))
    epoch = order.load().epoch + 1
    sources = [Experiences(partition, outbox, events) for partition, outbox in enumerate(outboxes)]
    training = Training(order, sources, configs, epoch=epoch, identity=events.identity)
    training.plant(chosen.key, course.arrays, course.newest)
    settlers = [Settler(p, events, outbox, configs, epoch=epoch) for p, outbox in enumerate(outboxes)]
    taken = take(training, order, settlers, outboxes)
    if taken is None or not TrainingUploads(uploads, epoch).put(events.identity, training.checkpointed, taken, order):
        console.print("not uploaded yet: the trainer has to begin on this disk")
    bundles = open_bundles(settings)
    made = chosen.algorithm.publish(chosen.config, chosen.problem, course.arrays, time.time(), 0)
    if named[0] in bundles.pointers():
        console.print("the policy has a bundle: the learning service publishes the next one when it starts")
        return
    epoch = max(bundles.epochs().values(), default=0)
    outcome = Publisher(bundles, configs, epoch).publish(chosen, (), {}, time.time(), ready=made)
    if outcome.manifest is None:
        raise Rejected(f"{outcome.result}: {outcome.detail}", at="--policy", code="refused")
    console.print(f"bundle {outcome.manifest.bundle}", highlight=False)
