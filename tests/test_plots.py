"""Names in figures: drawn as they are, in a font that has them, or said to have none."""

import matplotlib.pyplot as plt
import pytest
from matplotlib import font_manager

from transferlab.plots import font_hint, undrawn, use_fonts

HANGUL = "고양이"


@pytest.fixture(autouse=True)
def rc():
    with plt.rc_context():
        yield


def test_without_a_font_one_hint_names_what_cannot_be_drawn(monkeypatch):
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    hint = font_hint([HANGUL, "cat", "고래"])
    assert hint.startswith("no font here draws 고래양이: install one") and "\n" not in hint
    assert font_hint(["cat", "café", "x_{1}^"]) == ""


def test_with_a_font_there_is_none():
    if not use_fonts():
        pytest.skip("no font here has Korean letters")
    assert undrawn([HANGUL, "日本"]) == "" and font_hint([HANGUL]) == ""


@pytest.mark.parametrize("name", ["$1", "x_{1}^\\q$", "$\\frac{1}{0$", "50%", "a&b", "<b>", "\\"])
def test_no_name_is_taken_for_a_formula(name, tmp_path):
    use_fonts()
    figure, axis = plt.subplots()
    axis.barh([name, "other"], [1, 2])
    axis.set_title(name)
    figure.savefig(tmp_path / "figure.png")
    plt.close(figure)
    assert (tmp_path / "figure.png").stat().st_size > 1000
