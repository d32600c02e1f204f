"""A table that draws only the rows that are on the screen: a thousand agents, once a second, cost no more than a screenful."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from muster.tui.columns import COLORS, GAP, Column, Row, cell, fit

_HEAD = Style(bold=True, underline=True)
_CURSOR = Style(reverse=True)


class Rows(ScrollView, can_focus=True):
    """The head in the first line, the rows below it, one of them chosen. The chosen one stays the same agent when the order changes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home,g", "move(-1000000)", show=False),
        Binding("end,G", "move(1000000)", show=False),
    ]

    class Chosen(Message):
        """Another row was chosen."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._columns: Sequence[Column] = ()
        self._rows: Sequence[Row] = ()
        self._widths: list[tuple[Column, int]] = []
        self._sort = ""
        self._key = ""

    def show(self, rows: Sequence[Row], columns: Sequence[Column], *, sort: str, key: str) -> None:
        """Show `rows`; `key` names what identifies one, `sort` the column whose title is marked."""
        chosen = self.chosen
        self._rows, self._columns, self._sort, self._key = rows, columns, sort, key
        self._at = 0
        if chosen is not None:
            self._at = next((at for at, row in enumerate(rows) if row.get(key) == chosen.get(key)), 0)
        self._lay_out()

    _at = 0

    @property
    def chosen(self) -> Row | None:
        """The chosen row, if there is any."""
        return self._rows[self._at] if self._at < len(self._rows) else None

    def on_resize(self) -> None:
        self._lay_out()

    def _lay_out(self) -> None:
        self._widths = fit(self._columns, self._rows, self.size.width) if self._columns else []
        self.virtual_size = Size(0, len(self._rows) + 1)
        self.refresh()

    def action_move(self, by: int) -> None:
        self._at = min(max(0, self._at + by), max(0, len(self._rows) - 1))
        # One line more above: the head covers the first one.
        self.scroll_to_region(Region(0, max(0, self._at), 1, 2), animate=False, force=True)
        self.refresh()
        self.post_message(self.Chosen())

    def action_page(self, by: int) -> None:
        self.action_move(by * max(1, self.size.height - 2))

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y == 0:
            return self._strip(
                [(self._title(column), size, column.is_number, _HEAD) for column, size in self._widths], width
            )
        at = y - 1 + self.scroll_offset.y
        if at >= len(self._rows):
            return Strip.blank(width, self.rich_style)
        row, over = self._rows[at], _CURSOR if at == self._at and self.has_focus else None
        cells = []
        for column, size in self._widths:
            text = column.text(row)
            style = Style.parse(COLORS[text]) if text in COLORS else Style.null()
            cells.append((text, size, column.is_number, style + over if over else style))
        return self._strip(cells, width, over)

    def _title(self, column: Column) -> str:
        return f"{column.title}•" if column.sort and column.sort == self._sort else column.title

    def _strip(self, cells: list[tuple[str, int, bool, Style]], width: int, over: Style | None = None) -> Strip:
        base = self.rich_style
        gap = Segment(" " * GAP, base + over if over else base)
        segments: list[Segment] = []
        for text, size, right, style in cells:
            segments += [Segment(cell(text, size, right=right), base + style), gap]
        return Strip(segments).adjust_cell_length(width, base + over if over else base)
