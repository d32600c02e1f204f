"""Headers of pages and segments, told apart: whole, damaged, or of a format that is younger than this muster.

The checksum of a header does not cover its version. A version that no muster will ever have is therefore damage, not a younger format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from muster.bus.transports.lanes.segment import parse_header
from muster.bus.transports.lanes.words import lane_id_of
from muster.errors import StoreVersionError

VERSION_MAX: Final = 0xFF
T = TypeVar("T")


def page_id(page: bytes, magic: bytes) -> bytes | None:
    """The lane id of a page, or None if its header is damaged. Raises StoreVersionError: of a younger format."""
    return _believed(lambda: lane_id_of(page[:32], magic))


def segment_facts(data: bytes) -> tuple[bytes, int, int] | None:
    """(lane id, first number, size) of a segment, or None if its header is damaged. Raises StoreVersionError: of a younger format."""
    return _believed(lambda: parse_header(data))


def _believed(read: Callable[[], T | None]) -> T | None:
    try:
        return read()
    except StoreVersionError as error:
        version = error.facts.get("version")
        if isinstance(version, int) and 0 < version <= VERSION_MAX:
            raise
        return None
