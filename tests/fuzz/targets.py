"""All targets by their names."""

from __future__ import annotations

from . import files, frames, stores

TARGETS = {target.name: target for target in [*frames.TARGETS, *files.TARGETS, *stores.TARGETS]}
