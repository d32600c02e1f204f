"""The pieces of the benchmarks that could tell an untruth: ratios, audits, charts, and the marked parts of the page."""

import xml.etree.ElementTree as ET

import pytest
from benchmarks import effort, page, svg
from benchmarks.charts import CHARTS
from benchmarks.flow import Audit, Bodies
from benchmarks.harness import Case, Contender, Goal, MeasureError, MissingContenderError, Outcome, measure, verdicts

SVG = "{http://www.w3.org/2000/svg}"


def never():
    raise AssertionError("not measured here")


def outcome(figure, ours, theirs, sense=">=", factor=None, case="message"):
    """What a case would have measured, with these figures in its rounds."""
    goal = Goal(figure, "muster", "peer", sense, factor)
    measured = Outcome(Case(case, "a title", [Contender("muster", never), Contender("peer", never)], [goal]))
    measured.rounds = {"muster": [{figure: value} for value in ours], "peer": [{figure: value} for value in theirs]}
    return measured


def only_verdict(measured):
    (verdict,) = verdicts(measured)
    return verdict


# ---------------------------------------------------------------------------- ratios


@pytest.mark.parametrize(
    ("figure", "sense", "ours", "theirs", "ratio"),
    [
        ("us", ">=", 10.0, 30.0, 3.0),  # three times as fast, by times
        ("per_s", ">=", 30.0, 10.0, 3.0),  # three times as fast, by rates
        ("p50_ms", "<=", 10.0, 30.0, 1 / 3),  # a third of the time
        ("per_s", "<=", 10.0, 30.0, 3.0),  # three times as slow
    ],
)
def test_a_ratio_says_the_same_for_times_and_rates(figure, sense, ours, theirs, ratio):
    assert only_verdict(outcome(figure, [ours], [theirs], sense)).ratio == pytest.approx((ratio, ratio, ratio))


def test_a_ratio_is_made_within_a_round_and_not_of_medians():
    # The machine was ten times as slow in the second round and the third: each round by itself says "twice as fast".
    found = only_verdict(outcome("us", [1.0, 10.0, 10.0], [2.0, 20.0, 20.0]))
    assert found.ratio == pytest.approx((2.0, 2.0, 2.0))


@pytest.mark.parametrize(
    ("sense", "factor", "theirs", "word"),
    [
        (">=", 2.0, 20.0, "reached"),
        (">=", 2.1, 20.0, "not reached"),
        ("<=", 0.5, 20.0, "reached"),
        ("<=", 0.4, 20.0, "not reached"),
        (">=", None, 20.0, ""),
    ],
)
def test_a_goal_is_judged_by_the_median_and_without_a_factor_not_at_all(sense, factor, theirs, word):
    assert only_verdict(outcome("us", [10.0], [theirs], sense, factor)).word == word


def test_a_smoke_run_judges_nothing(monkeypatch):
    monkeypatch.setattr(effort, "_quick", True)
    assert only_verdict(outcome("us", [10.0], [20.0], ">=", 2.0)).word == ""
    assert effort.effort(100, 1) == 1


def test_contenders_take_turns_and_a_wrong_one_is_left_out_of_later_rounds():
    calls = []

    def fine():
        calls.append("a")
        return {"us": 1.0}

    def wrong():
        calls.append("b")
        raise MeasureError("lost a message")

    def missing():
        calls.append("c")
        raise MissingContenderError("not here")

    goals = [Goal("us", "a", "b"), Goal("us", "a", "c")]
    contenders = [Contender("a", fine), Contender("b", wrong), Contender("c", missing)]
    measured = measure(Case("x", "x", contenders, goals, rounds=3))
    assert calls == ["a", "b", "c", "a", "a"]
    assert [verdict.word for verdict in verdicts(measured)] == ["wrong", "missing"]
    assert [verdict.ratio for verdict in verdicts(measured)] == [None, None]


# ---------------------------------------------------------------------------- audits


def stream(sender, count, body_bytes=64, batch=1):
    bodies = Bodies(sender, body_bytes, batch)
    sent = [body for _, part in zip(range(count // batch), bodies.batches(), strict=False) for body in part]
    return [*sent, bodies.last(len(sent))]


@pytest.mark.parametrize(("body_bytes", "batch"), [(16, 1), (64, 100), (4096, 1), (65536, 1)])
def test_an_audit_is_content_with_every_message_in_order(body_bytes, batch):
    audit = Audit(2, body_bytes, batch)
    for one, two in zip(stream(0, 300, body_bytes, batch), stream(1, 300, body_bytes, batch), strict=True):
        assert not audit.is_complete
        audit.check(one)
        audit.check(two)
    assert audit.is_complete
    assert audit.count == 602


def lose(bodies):
    return bodies[:7] + bodies[8:]


def lose_a_whole_cycle(bodies):
    return bodies[:7] + bodies[7 + Bodies(0, 64).cycle :]


def repeat(bodies):
    return [*bodies[:7], bodies[6], *bodies[7:]]


def swap(bodies):
    return [*bodies[:7], bodies[8], bodies[7], *bodies[9:]]


def shorten(bodies):
    return [*bodies[:7], bodies[7][:-1], *bodies[8:]]


def flip(bodies):
    return [*bodies[:7], bodies[7][:-1] + b"\xff", *bodies[8:]]


@pytest.mark.parametrize("harm", [lose, lose_a_whole_cycle, repeat, swap, shorten, flip])
def test_an_audit_finds_a_message_that_is_lost_doubled_misplaced_or_damaged(harm):
    audit = Audit(1, 64)
    with pytest.raises(MeasureError):
        for body in harm(stream(0, 500)):
            audit.check(body)


# ---------------------------------------------------------------------------- charts


def test_bars_are_as_long_as_their_values_on_a_logarithmic_scale():
    bars = [svg.Bar(name, value, value, value) for name, value in (("a", 1.0), ("b", 10.0), ("c", 100.0))]
    root = ET.fromstring(svg.bars("t", "n", [svg.Group("g", bars)], str))
    card, one, ten, hundred = (float(rect.attrib["width"]) for rect in root.iter(f"{SVG}rect"))
    assert hundred - ten == pytest.approx(ten - max(one, 0), abs=1.5)
    assert hundred < card


def test_every_bar_and_line_has_its_name_and_number_in_the_chart():
    bars = [svg.Bar("<ours & co>", 3.0, 2.0, 4.0, is_own=True), svg.Bar("peer", 30.0, 20.0, 40.0)]
    words = text_of(svg.bars("title", "note", [svg.Group("heading", bars)], lambda value: f"{value:g} ms"))
    assert {"title", "note", "heading", "<ours & co>", "peer", "3 ms", "30 ms"} <= words
    axes = svg.Axes("across", "up", str, str, [1.0, 10.0], (5.0, "a limit"))
    words = text_of(svg.lines("title", "note", [svg.Line("one", [(1.0, 2.0), (10.0, 3.0)])], axes))
    assert {"one", "across", "up", "a limit"} <= words


def text_of(document):
    return {"".join(element.itertext()) for element in ET.fromstring(document).iter(f"{SVG}text")}


def test_nothing_of_a_chart_lies_outside_of_it():
    lines = [svg.Line(f"line {number}", [(64.0, 1.0 + number / 100), (1e6, 2.0)]) for number in range(7)]
    axes = svg.Axes("x", "y", str, str, [64.0, 1e6])
    root = ET.fromstring(svg.lines("t", "n", lines, axes))
    height = float(root.attrib["height"])
    for element in root.iter(f"{SVG}text"):
        assert 0 <= float(element.attrib["x"]) <= svg.WIDTH
        assert 0 <= float(element.attrib["y"]) <= height


def test_a_logarithmic_scale_refuses_what_it_cannot_show():
    with pytest.raises(ValueError, match="above zero"):
        svg.Scale([0.0, 1.0], (0, 1))


def test_names_that_would_cover_each_other_are_moved_apart_in_their_order():
    places = svg.spread([10.0, 11.0, 9.5, 80.0], 16, 100)
    assert places[3] == 80.0
    assert max(svg.spread([95.0, 99.0], 16, 100)) <= 100
    assert places[2] < places[0] < places[1]
    assert min(places[0] - places[2], places[1] - places[0]) >= 15.9


# ---------------------------------------------------------------------------- the page

MARKED = "before\n<!-- bench:messages -->\nold\n<!-- bench:end -->\nbetween\n<!-- bench:store -->\n<!-- bench:end -->\nafter\n"


def test_a_part_replaces_what_stands_between_its_markers_and_nothing_else():
    once = page.replace_part(MARKED, "messages", "new")
    assert once == MARKED.replace("\nold\n", "\n\nnew\n\n")
    assert page.replace_part(once, "messages", "new") == once


@pytest.mark.parametrize(
    "broken",
    [
        MARKED.replace("<!-- bench:messages -->", ""),
        MARKED + "<!-- bench:messages -->\n<!-- bench:end -->\n",
        MARKED.replace("old\n<!-- bench:end -->", "old"),
    ],
)
def test_a_page_with_broken_markers_is_refused(broken):
    with pytest.raises(page.MarkerError):
        page.replace_part(broken, "messages", "new")


def test_the_page_in_the_repository_has_every_part_and_shows_every_chart():
    text = page.PAGE.read_text()
    for name in ("machine", "messages", "patterns", "sizes", "rounds", "store", "fleets", "commands", "peers-ahead"):
        text = page.replace_part(text, name, "x")
    for chart in CHARTS:
        assert f"(charts/{chart}.svg)" in text


def test_a_part_is_left_alone_unless_all_its_cases_were_measured(tmp_path):
    copy = tmp_path / "performance.md"
    copy.write_text(MARKED)
    assert page.write([outcome("us", [1.0], [2.0])], page=copy, charts=tmp_path / "charts") == ["message.svg"]
    assert copy.read_text() == MARKED


@pytest.mark.parametrize(
    ("figure", "sense", "ours", "theirs", "told"),
    [
        ("us", ">=", 10.0, 20.0, False),
        ("us", ">=", 20.0, 10.0, True),
        ("per_s", ">=", 10.0, 20.0, True),
        ("bytes", "<=", 20.0, 10.0, True),
        ("bytes", "<=", 10.0, 20.0, False),
    ],
)
def test_the_page_tells_every_comparison_that_a_peer_wins_and_no_other(figure, sense, ours, theirs, told):
    table = page.peers_ahead([outcome(figure, [ours], [theirs], sense)])
    assert ("| peer |" in table.split("\n", 2)[-1]) == told
    assert not told or "2.00 ×" in table


def test_a_matrix_shows_how_many_times_as_fast_muster_is():
    table = page.matrix([outcome("per_s", [30.0], [10.0])], "per_s")
    assert table.splitlines()[-1] == "| a title | **30/s** | 10/s (3.00 ×) |"
    table = page.matrix([outcome("bytes", [100.0], [200.0])], "bytes", more_is_better=False)
    assert table.splitlines()[-1] == "| a title | **100 B** | 200 B (2.00 ×) |"
