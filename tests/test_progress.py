"""The line that says how long the rest takes."""

import re

import pytest

from transferlab import progress
from transferlab.progress import LONGEST, Progress


@pytest.fixture
def drawn(monkeypatch, capsys):
    """Draws whenever it may, and reads the lines that were drawn."""
    monkeypatch.setattr(progress, "REDRAW", 0)

    def lines():
        text = capsys.readouterr().err
        return [line for line in re.split("[\r\n]", text) if line.strip()]

    return lines


def shares(lines):
    """(part, percent) of every line."""
    found = [
        re.match(r"(\d+) %, \d\d:\d\d so far(, about \S+ left)?: (.*)", line) for line in lines
    ]
    return [(one[3], int(one[1])) for one in found if one and one[3]]


def test_it_goes_on_by_what_each_part_is_expected_to_take(drawn):
    line = Progress()
    with line.over({"slow": 30.0, "quick": 10.0}):
        line.begin("slow", 1.0)
        line.images(10)
        line.images(10)
        line.begin("quick", 0.5)  # the slow one was expected to take 30
        line.images(10)
    found = list(dict.fromkeys(shares(drawn())))
    assert found == [("slow", 0), ("slow", 25), ("slow", 50), ("quick", 75), ("quick", 88)]


def test_it_never_goes_back_nor_beyond_the_end(drawn):
    line = Progress()
    with line.over({"one": 10.0, "other": 10.0}):
        line.begin("one", 1.0)
        line.images(100)  # more than were expected
        line.begin("other", 1.0)
        line.images(1)
        line.begin("unknown", 1.0)
        line.refresh()
    percents = [percent for _, percent in shares(drawn())]
    assert percents == sorted(percents) and max(percents) == 99  # it is not over yet


def test_how_long_is_not_told_before_there_is_a_pace(drawn):
    line = Progress()
    with line.over({"one": 100.0}):
        line.begin("one", 1.0)
        line.images(2)
        assert all("left" not in one for one in drawn())
        line.images(8)
        assert "about" in drawn()[-1]


def test_while_nothing_moves_the_line_is_drawn_anew_but_not_all_the_time(drawn, monkeypatch):
    line = Progress()
    with line.over({"fit": 10.0}):
        line.begin("fit", 1.0)
        drawn()
        line.refresh()
        assert len(drawn()) == 1
        monkeypatch.setattr(progress, "REDRAW", 60)
        for _ in range(50):
            line.refresh()
            line.images(0)
        assert drawn() == []


def test_it_says_nothing_where_nothing_is_to_be_done(drawn):
    line = Progress()
    line.begin("alone", 1.0)
    line.images(3)
    line.refresh()
    with line.over({}):
        line.begin("nothing", 1.0)
        line.images(3)
    assert drawn() == []


def test_a_long_name_does_not_break_the_line(drawn):
    line = Progress()
    with line.over({"x" * 300: 1.0}):
        line.begin("x" * 300, 1.0)
    assert max(len(one) for one in drawn()) < LONGEST + 50
