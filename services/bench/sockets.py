"""HTTP over bare sockets: an HTTP library spends more on a request than the service does, and would measure itself."""

import asyncio
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Connection:
    """One kept-alive connection; one request at a time."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, url: str) -> "Connection":
        """Raises OSError."""
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port or 80))

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """(status, body) of the answer. Raises OSError, asyncio.IncompleteReadError when the other side goes away."""
        head = f"POST {path} HTTP/1.1\r\nHost: load\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        answer = await self.reader.readuntil(b"\r\n\r\n")
        size = _LENGTH.search(answer)
        return int(answer[9:12]), await self.reader.readexactly(int(size[1]) if size else 0)

    def close(self) -> None:
        self.writer.close()
