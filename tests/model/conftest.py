"""Long explorations take minutes each; the suite's limit per test is meant for the short ones."""

from __future__ import annotations

import pytest

from .explorer import LONG


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not LONG or not config.pluginmanager.hasplugin("timeout"):
        return
    for item in items:
        if item.path.parent.name == "model":
            item.add_marker(pytest.mark.timeout(3600))
