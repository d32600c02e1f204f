"""Command templates put inputs where they belong, and nowhere where a shell could act on them."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from muster.core.template import expand, expand_shell, has_placeholder
from muster.errors import ConfigError

PATH = "a dir/x.tar.gz"


@pytest.mark.parametrize(
    ("placeholder", "value"),
    [
        ("{}", "a dir/x.tar.gz"),
        ("{input}", "a dir/x.tar.gz"),
        ("{.}", "a dir/x.tar"),
        ("{/}", "x.tar.gz"),
        ("{//}", "a dir"),
        ("{/.}", "x.tar"),
        ("{#}", "7"),
    ],
)
def test_each_placeholder_stands_for_its_part_of_the_input(placeholder: str, value: str) -> None:
    assert expand(("cmd", f"<{placeholder}>"), PATH, 7) == ["cmd", f"<{value}>"]


@pytest.mark.parametrize(
    ("text", "placeholder", "value"),
    [
        ("plain", "{.}", "plain"),
        (".bashrc", "{.}", ".bashrc"),
        ("a.b/plain", "{.}", "a.b/plain"),
        ("plain", "{//}", "."),
        ("/top", "{//}", "/"),
        ("dir/sub/", "{/}", "sub"),
        ("/", "{/}", "/"),
        ("", "{}", ""),
    ],
)
def test_edges_of_paths(text: str, placeholder: str, value: str) -> None:
    assert expand((placeholder,), text, 1) == [value]


def test_the_input_is_a_last_argument_when_there_is_no_placeholder() -> None:
    assert expand(("echo", "{unknown}", "{ }"), "x y", 1) == ["echo", "{unknown}", "{ }", "x y"]
    assert not has_placeholder(("echo", "{unknown}", "${HOME}"))


def test_several_placeholders_fill_one_argument() -> None:
    assert expand(("cp", "{}", "{#}-{/}.bak"), "d/f", 3) == ["cp", "d/f", "3-f.bak"]


def test_text_of_an_input_is_never_searched_for_placeholders() -> None:
    assert expand(("echo", "{}{#}"), "{#}{}\\1", 5) == ["echo", "{#}{}\\15"]


@given(st.text())
def test_without_a_shell_an_input_is_one_argument_as_it_is(text: str) -> None:
    assert expand(("cmd", "{}"), text, 1) == ["cmd", text]
    assert expand(("cmd",), text, 1) == ["cmd", text]


def test_a_shell_line_is_what_was_written_with_quoted_values() -> None:
    assert (
        expand_shell(("wc -l <", "{}", "| sort > {/.}.out"), "a b/c d.txt", 1)
        == "wc -l < 'a b/c d.txt' | sort > 'c d'.out"
    )
    assert expand_shell(("wc", "-l"), "it's", 1) == """wc -l 'it'"'"'s'"""


# Whatever stands around a placeholder, `printf` must print the input and nothing else may run.
@given(st.text(alphabet=st.sampled_from("ab '\"\\$(){};&|<>\n`#*?~!-")).filter(lambda text: "\0" not in text))
@example("'; echo broken; '")
@example('"; echo broken; "')
@example("$(echo broken)")
@example("`echo broken`")
@example("a\necho broken\n#")
def test_a_quoted_input_reaches_the_program_unchanged(text: str) -> None:
    templates = (
        "printf %s. {}",
        "printf '%s.' '{}'",
        'printf "%s." "{}"',
        "printf %s. 'a'{}\"b\"",
        'v={}; printf %s. "$v"',
    )
    lines = "\n".join(expand_shell((template,), text, 1) + "; printf '\\0'" for template in templates)
    out = subprocess.run(["/bin/sh", "-c", lines], capture_output=True, text=True, check=True, timeout=20).stdout
    assert out.split("\0")[:-1] == [f"{text}.", f"{text}.", f"{text}.", f"a{text}b.", f"{text}."]


@pytest.mark.parametrize(
    "template",
    [
        "echo `cat {}`",
        "cat <<END\n{}\nEND",
        "echo $'x{}'",
        "echo $(( {} + 1 ))",
        'echo "$(cat {})"',
        'echo "$(echo "{}")"',
        'echo "${x:-{}}"',
        "echo done # {}",
        "echo \\{}",
    ],
)
def test_a_template_in_which_no_quoting_is_safe_is_refused(template: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand_shell((template,), "x", 1)
    assert caught.value.code == "usage.config"


@pytest.mark.parametrize(
    "template", ["echo $(cat {})", "echo '#' {}", "echo a#{}", "# note\necho {}", 'echo "a" {} "b$x"']
)
def test_harmless_neighbours_are_not_refused(template: str) -> None:
    assert "'a b'" in expand_shell((template,), "a b", 1)
