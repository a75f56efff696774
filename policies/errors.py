"""The error tree: three kinds, by who must act."""


class SlatewiseError(Exception):
    """Root of what this project raises on purpose."""


class Rejected(SlatewiseError):
    """The caller must change the request: HTTP 4xx, with the path of what is wrong."""

    def __init__(self, message: str, *, at: str = "$", code: str = "invalid", status: int = 422) -> None:
        super().__init__(message)
        self.message, self.at, self.code, self.status = message, at, code, status

    def __str__(self) -> str:
        return f"{self.message} - at {self.at}"


class Unavailable(SlatewiseError):
    """Something we depend on is away; we recover by ourselves, the caller is answered by fallback or told to retry."""


class Corrupt(SlatewiseError):
    """A record, bundle or file that cannot be what it claims: set it aside, count it, go on without it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail
