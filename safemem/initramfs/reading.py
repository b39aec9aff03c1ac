# SPDX-License-Identifier: MIT
"""Bytes one after the other, whether they lie in an image or come out of a compressed part of it."""

from __future__ import annotations

from collections.abc import Iterator


class Reader:
    """Bytes one after the other: the image's own, or those that a compressed part of it unpacks to."""

    def __init__(self, pieces: Iterator[bytes], where: str = "") -> None:
        self._pieces, self._where = pieces, where
        self._buffer, self._index = b"", 0
        self.at = 0  #: how many have been taken
        self.end = 0  #: what the pieces' generator has returned

    def __str__(self) -> str:
        """Return the place of the next byte, for a message."""
        return f"{self._where}byte {self.at}"

    def _fill(self) -> bool:
        """Have at least one byte in the buffer, if there is one."""
        while self._index == len(self._buffer):
            try:
                self._buffer, self._index = next(self._pieces), 0
            except StopIteration as stop:
                # Said once; an exhausted generator returns None.
                self.end = stop.value or self.end
                return False
        return True

    def peek(self) -> bytes:
        """Return the next byte, or nothing at the end."""
        return self._buffer[self._index : self._index + 1] if self._fill() else b""

    def pieces(self, size: int) -> Iterator[bytes]:
        """Take the next `size` bytes, in pieces; fewer at the end."""
        while size and self._fill():
            piece = self._buffer[self._index : self._index + min(size, 1 << 20)]
            self._index += len(piece)
            self.at += len(piece)
            size -= len(piece)
            yield piece

    def take(self, size: int) -> bytes:
        """Take the next `size` bytes, fewer at the end."""
        return b"".join(self.pieces(size))

    def skip(self, size: int) -> int:
        """Take the next `size` bytes without a look at them; return how many there were."""
        left = size
        while left and self._fill():
            step = min(left, len(self._buffer) - self._index)
            self._index += step
            self.at += step
            left -= step
        return size - left

    def skip_zeros(self) -> None:
        """Take the zeros that come next."""
        while self.peek() == b"\0":
            rest = self._buffer[self._index : self._index + 4096]
            self.skip(len(rest) - len(rest.lstrip(b"\0")))
