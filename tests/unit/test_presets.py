"""Presets of coding command lines."""

from __future__ import annotations

import pytest

from muster.agent.dialects import READERS
from muster.core.presets import PRESETS, preset
from muster.core.template import expand
from muster.errors import ConfigError


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_reader_and_puts_the_prompt_where_no_option_is_looked_for(name):
    chosen = PRESETS[name]
    assert chosen.dialect in READERS
    for session in ("", "s-1"):
        argv = expand(chosen.command(("--model", "m"), session), "--help me", 1)
        at = next(n for n, word in enumerate(argv) if word.endswith("--help me"))
        assert at == len(argv) - 1
        assert argv[at].startswith("--prompt=") or "--" in argv[:at]
        assert "--model" in argv
        assert ("s-1" in argv) == bool(session)


def test_the_users_prompt_surrounds_the_input():
    assert expand(preset("claude").command(prompt="Fix {} now"), "issue 7", 1)[-1] == "Fix issue 7 now"


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ConfigError, match="there are claude, codex, gemini"):
        preset("cluade")
