"""The common case of a batch, in columns: what most records are, joined by compiled loops instead of one by one.

A record is plain when it is written as this build writes it and nothing about it is special; a decision id is plain in a
batch when everything the batch says of it is. All that is not plain takes the general path of `streaming.join`, whose
verdicts, evidence and rows these are, byte for byte: `tests/streaming/test_plain.py` holds one against the other.

    numbers   decimal text → the nearest double, as `float` has it
    scan      bytes of many records → columns; a record that is written otherwise is left to msgspec
    hashes    BLAKE2b-64 of ids, and records grouped by the decision they name
    judge     columns → verdicts, rows for the checkpoint and `Changes`
"""
