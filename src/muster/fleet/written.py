"""What somebody wrote in fleet.toml, table by table: unknown keys are errors that name the nearest known one, types are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from muster.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)


def checked_table(table: object, struct: type[msgspec.Struct], path: Path, place: str) -> dict[str, Any]:
    """`table` if it is one and has no key that `struct` does not know. Raises ConfigError."""
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {place} must be a table", source=str(path))
    for key in table:
        if key not in struct.__struct_encode_fields__:
            raise unknown_key(key, struct.__struct_encode_fields__, str(path), place)
    return table


def unknown_key(key: str, known: tuple[str, ...], source: str, place: str, *, what: str = "key") -> ConfigError:
    """The error for a key that is none."""
    import difflib  # only errors pay for it

    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
    return ConfigError(
        f"{source}: unknown {what} {key!r} in {place}; {hint}",
        key=key,
        source=source,
        nearest=nearest[0] if nearest else None,
    )


def converted(table: dict[str, Any], struct: type[T], path: Path, place: str) -> T:
    """`table` in the types of `struct`. Raises ConfigError."""
    try:
        return msgspec.convert(table, struct)
    except msgspec.ValidationError as error:
        # msgspec says "Expected `int`, got `str` - at `$.count`"; people want the key's name in front.
        text, _, where = str(error).partition(" - at `$.")
        key = where.rstrip("`")
        raise ConfigError(
            f"{path}: {place} {key}: {text[:1].lower()}{text[1:]}".replace("  ", " "), key=key, source=str(path)
        ) from None
