"""Where trainers go on from: this disk, unless another owner has uploaded since it was last written to."""

import logging
from collections.abc import Sequence

from policies.errors import Corrupt
from services.settings import Settings
from services.wiring import clear_training, open_training, open_uploads
from streaming.settle import Settlements
from streaming.training_uploads import TrainingUploads, go_on

log = logging.getLogger("slatewise.training")


def regained(settings: Settings, identity: str, owner: int) -> tuple[Settlements, Sequence[Settlements]]:
    """Order and outboxes (`open_training`) as the newest owner left them, for one that begins.

    A disk that was lost, that is no database any more or that another owner has overtaken elsewhere begins with the
    newest upload; what lies there is kept aside. Raises Unavailable while the bundle store cannot say, Corrupt('upload',
    'other_log') and Rejected('fenced').
    """
    uploads = TrainingUploads(open_uploads(settings), owner)
    newest = uploads.newest()
    try:
        order, outboxes = open_training(settings)
        local = order.load().epoch
    except Corrupt as error:
        log.error("trainers' disk set aside", extra={"error": str(error)})
        clear_training(settings)
        order, outboxes = open_training(settings)
        local = 0
    if newest is None or newest.epoch <= local:
        return order, outboxes
    if newest.log != identity:
        if local:
            return order, outboxes  # which says by itself which log it is of
        raise Corrupt("other_log", f"trained from the log {newest.log}, this one is {identity}")
    upload = uploads.read(newest)
    for store in (order, *outboxes):
        store.close()
    clear_training(settings)
    order, outboxes = open_training(settings)
    go_on(upload, order, outboxes, owner)
    log.warning("goes on from the upload", extra={"entries": newest.entries, "of_owner": newest.epoch, "owner": owner})
    return order, outboxes
