"""Settled decisions outside the service: files as they settle, exports on demand."""
