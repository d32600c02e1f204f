"""What coding command lines say about themselves while they work: their event streams, read into one vocabulary."""

from __future__ import annotations

from muster.agent.dialects.claude import ClaudeReader
from muster.agent.dialects.codex import CodexReader
from muster.agent.dialects.gemini import GeminiReader
from muster.agent.dialects.reading import Limited, Reader, Reading

#: Dialect -> its reader. A preset names its dialect.
READERS: dict[str, type[Reader]] = {"claude": ClaudeReader, "codex": CodexReader, "gemini": GeminiReader}

__all__ = ["READERS", "ClaudeReader", "CodexReader", "GeminiReader", "Limited", "Reader", "Reading"]
