"""Record batches decoded several times faster than kafka-python does: positions by compiled code, then slices.

kafka-python makes two objects and reads seven numbers in Python for every record, four fifths of what reading costs. Here
the numbers of a batch are read at once, and a record is one tuple, made without a line of Python. What surrounds it stays kafka-python's: connections,
fetching, checksums, compression, transactions. This leans on some of its inner names (`NEEDED`); where one is missing, the
library's own decoder does the work, slower and with the same result. Tests hold the two against each other.

Source   Kafka protocol, "Record Batch" and "Record", message format 2
"""

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import numpy as np
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.protocol.consumer import IsolationLevel
from kafka.record.default_records import DefaultRecordBatch
from numpy.typing import NDArray

from policies.compiling import compiled, compiled_beside
from streaming.ports import Record

NEEDED = (
    (Fetcher.PartitionRecords, "_unpack_records"),
    (Fetcher.PartitionRecords, "_maybe_skip_record"),
    (Fetcher.PartitionRecords, "_maybe_raise_next_inline_exception"),
    (Fetcher.PartitionRecords, "take"),
    (Fetcher.PartitionRecords, "_consume_aborted_transactions_up_to"),
    (DefaultRecordBatch, "_maybe_uncompress"),
    (DefaultRecordBatch, "_buffer"),
)
POSSIBLE = all(hasattr(kind, name) for kind, name in NEEDED)
_new = tuple.__new__  # half of the time that the named tuple's own takes
OFFSET, TIME, KEY, KEY_END, VALUE, VALUE_END, HEADERS, HEADERS_AT = range(8)  # columns of `positions`


@compiled_beside
def positions(data: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """(count, 8): offset and time beyond the batch's first, where key and value lie (start −1: null), number of headers
    and where they begin. Of fewer rows than `count` when the bytes are not that many records, one after the other."""
    if count < 0 or count > len(data):  # a record is seven bytes at least
        return np.empty((0, 8), np.int64)
    found = np.empty((count, 8), np.int64)
    place = 0
    for row in range(count):
        length, place = _varint(data, place)
        end = place + length
        if length < 0 or place < 0 or end < place or end > len(data):
            return found[:row]
        place += 1  # attributes of a record: none are defined
        found[row, 1], place = _varint(data, place)
        found[row, 0], place = _varint(data, place)
        for column in (2, 4):
            size, place = _varint(data, place)
            found[row, column] = place if size >= 0 else -1
            place += max(size, 0)
            found[row, column + 1] = place
            if place < 0 or place > end:
                return found[:row]
        headers, place = _varint(data, place)
        if headers < 0 or place < 0 or place > end or (headers == 0 and place != end):
            return found[:row]
        found[row, 6], found[row, 7] = headers, place
        place = end
    if place != len(data):
        return found[: max(count - 1, 0)]
    return found


@compiled
def _varint(data: NDArray[np.uint8], place: int) -> tuple[Any, Any]:
    """(zigzag number, where the next one begins); (−1, −1) when it does not end."""
    value, shift = np.uint64(0), np.uint64(0)
    while 0 <= place < len(data) and shift < 70:
        byte = np.uint64(data[place])
        place += 1
        value |= (byte & np.uint64(0x7F)) << shift
        if byte < 0x80:
            return np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1)), place
        shift += np.uint64(7)
    return -1, -1


class Batches(Fetcher.PartitionRecords):  # type: ignore[misc]  # kafka-python ships no types
    """What kafka-python makes of one fetched answer, giving our records, all at once; headers go to `headers`, by offset."""

    headers: dict[int, dict[str, bytes]]

    def take(self, n: int | None = None) -> list[Record]:
        """Everything that was fetched, whatever `n` says: whoever polls keeps the rest, and the next fetch is on its way."""
        self._maybe_raise_next_inline_exception()
        found: list[Record] = []
        try:
            for records in self.record_iterator:
                found += records
        except Exception as error:
            if not found:
                raise
            self._next_inline_exception = error  # for the next call
        return found

    def _maybe_skip_record(self, _: list[Record]) -> bool:
        return False  # `_records` leaves out what lies before the offset that was asked for

    def _unpack_records(self, tp: Any, records: Any, key: Any, value: Any) -> Iterator[list[Record]]:
        last = None
        while (batch := records.next_batch()) is not None:
            last = batch
            if self.check_crcs and not batch.validate_crc():
                raise CorruptRecordError(f"the batch at {tp} {batch.base_offset} fails its checksum")
            if batch.magic < 2:
                raise CorruptRecordError(f"the batch at {tp} {batch.base_offset} has message format {batch.magic}")
            self.leader_epoch = batch.leader_epoch
            if self._happened(batch) and not batch.is_control_batch:
                yield self._records(batch)
            self.next_fetch_offset = batch.next_offset  # also past markers, and what compaction took
        if last is not None:
            self.next_fetch_offset = last.next_offset
        self.drain()

    def _happened(self, batch: Any) -> bool:
        """Whether a batch is of no transaction, or of one that was committed; as kafka-python tells it."""
        if self.isolation_level != IsolationLevel.READ_COMMITTED or not batch.has_producer_id():
            return True
        self._consume_aborted_transactions_up_to(batch.last_offset)
        if self._contains_abort_marker(batch):
            self.aborted_producer_ids.discard(batch.producer_id)
            return True
        return not self._is_batch_aborted(batch)

    def _records(self, batch: Any) -> list[Record]:
        batch._maybe_uncompress()
        data = bytes(batch._buffer)[batch._pos :]
        rows = positions(np.frombuffer(data, np.uint8), batch.records_count)
        if len(rows) != batch.records_count:
            raise CorruptRecordError(
                f"{batch.records_count} records at offset {batch.base_offset} cannot be told apart"
            )
        rows[:, OFFSET] += batch.base_offset
        rows = rows[rows[:, OFFSET] >= self.fetch_offset]  # of a compressed batch all is fetched
        if batch.timestamp_type == batch.LOG_APPEND_TIME:
            times = repeat(batch.max_timestamp / 1000, len(rows))
        else:
            times = ((rows[:, TIME] + batch.first_timestamp) / 1000).tolist()
        for number, count, place in rows[rows[:, HEADERS] > 0][:, [OFFSET, HEADERS, HEADERS_AT]].tolist():
            self.headers[number] = _headers(data, count, place)
        keys, values = _parts(data, rows[:, KEY : KEY_END + 1]), _parts(data, rows[:, VALUE : VALUE_END + 1])
        return list(map(_new, repeat(Record), zip(rows[:, OFFSET].tolist(), times, keys, values)))  # noqa: B905 - as long as another


def _parts(data: bytes, places: NDArray[np.int64]) -> Iterator[bytes]:
    """Slices of the bytes; nothing where the start is −1."""
    starts, ends = places[:, 0], np.where(places[:, 0] < 0, 0, places[:, 1])
    return map(data.__getitem__, map(slice, np.maximum(starts, 0).tolist(), ends.tolist()))


def _headers(data: bytes, count: int, place: int) -> dict[str, bytes]:
    """Few records have any."""
    view, found = np.frombuffer(data, np.uint8), {}
    for _ in range(count):
        size, place = _varint(view, place)
        name, place = data[place : place + size], place + size
        size, value_at = _varint(view, place)
        place = value_at + max(size, 0)
        if not 0 <= value_at <= place <= len(data):
            raise CorruptRecordError("headers of a record end beyond it")
        found[name.decode(errors="replace")] = data[value_at:place]
    return found


def install(consumer: Any, headers: dict[int, dict[str, bytes]]) -> bool:
    """Let a kafka-python consumer decode this way; False where its inner names are others, and it goes on by itself."""
    fetcher = getattr(consumer, "_fetcher", None)
    if not POSSIBLE or fetcher is None or not hasattr(fetcher, "PartitionRecords"):
        return False
    fetcher.PartitionRecords = type("Batches", (Batches,), {"headers": headers})
    return True
