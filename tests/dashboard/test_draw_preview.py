"""The preview pictures: titles, colours and order are the report's, and figures are written as the model says."""

from __future__ import annotations

from pathlib import Path

import pytest
from build_dashboard import NAME
from check_source import read_source
from draw_preview import draw_page
from pbix_query import abbreviate, format_figure

from tests.dashboard.markets import Market
from tests.dashboard.source import GAINERS_JSON, THEME_JSON, change


def test_a_picture_shows_what_the_report_says_and_else_its_theme(copied_source: Path, awkward: Market):
    change(copied_source, GAINERS_JSON, "'Top 5 Gainers'", "'Five that rose most'")
    change(copied_source, THEME_JSON, '"title": [', '"title": [{"fontColor": {"solid": {"color": "#123456"}}},')

    _, report = read_source(copied_source / f"{NAME}.SemanticModel" / "definition", copied_source / f"{NAME}.Report")
    picture = draw_page(awkward.dashboard, report.pages[0], report.theme)

    (title,) = (text for text in picture.axes[0].texts if text.get_text() == "Five that rose most")
    assert title.get_color() == "#123456"
    below = sorted((text.get_position()[1], text.get_text()) for text in picture.axes[0].texts)
    leaps, climbs = (next(y for y, text in below if text.startswith(name)) for name in ("Leaps", "Climbs"))
    assert title.get_position()[1] < leaps < climbs


@pytest.mark.parametrize(
    ("figure", "pattern", "text"),
    [
        (1512000000000.0, r"\$#,0", "$1,512,000,000,000"),
        (0.000463468, r"\$#,0.00##", "$0.0005"),
        (1e-9, r"\$#,0.00########", "$0.000000001"),
        (87412.0, r"\$#,0.00########", "$87,412.00"),
        (0.1626839, "+0.00%;-0.00%;0.00%", "+16.27%"),
        (-0.1428, "+0.00%;-0.00%;0.00%", "-14.28%"),
        (0.0, "+0.00%;-0.00%;0.00%", "0.00%"),
        (-2.5, "#,0.0", "-2.5"),
        (None, "0", ""),
    ],
)
def test_the_pictures_write_figures_as_the_formats_of_the_model_say(figure: float | None, pattern: str, text: str):
    assert format_figure(figure, pattern) == text


@pytest.mark.parametrize(
    ("dollars", "decimals", "text"),
    [
        (1e12, None, "$1T"),
        (1e9, None, "$1bn"),
        (999_999.0, 0, "$1,000K"),
        (1e3, 2, "$1.00K"),
        (999.0, None, "$999"),
        (-2.97e12, None, "-$2.97T"),
        (0.0, None, "$0"),
    ],
)
def test_the_pictures_abbreviate_dollars_as_power_bi_does(dollars: float, decimals: int | None, text: str):
    assert abbreviate(dollars, decimals) == text
