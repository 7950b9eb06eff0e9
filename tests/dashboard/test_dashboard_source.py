"""The source of the dashboard: how the model and its queries are made, and how the pages are laid out."""

from __future__ import annotations

import json
import re
from itertools import combinations

import pytest
from report_source import Page

from segment_and_load import TIERS
from tests.dashboard.source import MEASURES, MODEL, QUERIES, REPORT, TABLES, TEXTS, VISUALS

# ------------------------------------------------------------------------------------------------------------ the model


def test_the_queries_filter_and_pick_columns_at_the_source_before_any_step_of_their_own():
    for name in ("crypto_prices", "Coin", "Time"):
        own_steps = re.search(r"Table\.(AddColumn|TransformColumnTypes|Expand\w+)|Text\.|List\.Buffer", QUERIES[name])
        at_the_source = QUERIES[name][: own_steps.start()]

        assert "Table.SelectRows(Prices, each [timestamp] > Since and [timestamp] <= Latest)" in at_the_source
        assert "Value.NativeQuery" not in QUERIES[name]
    (picked,) = re.findall(r"Kept = Table\.SelectColumns\(Recent, \{(.*?)\}\)", QUERIES["crypto_prices"])
    assert set(re.findall(r'"(\w+)"', picked)) == {column["name"] for column in TABLES["crypto_prices"]["columns"]}


def test_every_column_is_typed_by_its_query():
    words = {"double": "number", "string": "text", "dateTime": "datetime"}
    for name in ("crypto_prices", "Coin", "Time"):
        columns = {column["name"]: words[column["dataType"]] for column in TABLES[name]["columns"]}
        typed = dict(re.findall(r'\{"(\w+)", type (\w+)\}', QUERIES[name][QUERIES[name].rindex("Typed = ") :]))
        assert typed == columns | ({"date": "date"} if name == "Time" else {})


def test_the_model_is_a_star_of_keys_and_figures():
    ends = {(each["fromTable"], each["fromColumn"], each["toTable"]) for each in MODEL.tmsl["model"]["relationships"]}
    facts = {column["name"]: column for column in TABLES["crypto_prices"]["columns"]}

    assert ends == {
        ("crypto_prices", "coin_id", "Coin"),
        ("crypto_prices", "timestamp", "Time"),
        ("crypto_prices", "market_cap_tier", "Tier"),
    }
    assert {name for name, column in facts.items() if column["dataType"] != "double"} == {key for _, key, _ in ends}


def test_the_tiers_of_the_model_are_those_of_the_pipeline_in_their_order():
    assert re.findall(r'\{"(.+?)", (\d)\}', QUERIES["Tier"]) == [
        (tier, str(order)) for order, tier in enumerate(TIERS, start=1)
    ]


def test_every_measure_and_column_is_explained_and_formatted():
    for measure in MEASURES.values():
        assert measure["description"] and measure["displayFolder"]
        assert measure["name"] in TEXTS or measure["formatString"]
    for table in TABLES.values():
        assert table["description"] and all(column["description"] for column in table["columns"])
    hidden = {column["name"] for table in TABLES.values() for column in table["columns"] if column.get("isHidden")}
    assert hidden == {"timestamp", "coin_id", "market_cap_tier", "tier_order", "size_rank", "is_thin", "coins"}


# ----------------------------------------------------------------------------------------------------------- the report


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, from 1 to 21, as WCAG 2 defines it."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_text_stands_out_from_what_is_behind_it():
    theme = REPORT.theme
    styles = theme["visualStyles"]["*"]["*"]
    texts = {theme["foreground"], *(each["color"] for each in theme["textClasses"].values())}
    texts |= {styles[name][0]["fontColor"]["solid"]["color"] for name in ("title", "subTitle")}
    texts |= {styles[name][0]["labelColor"]["solid"]["color"] for name in ("categoryAxis", "valueAxis", "legend")}
    texts |= set(re.findall(r'"(#\w{6})"', MEASURES["Change Colour"]["expression"]))
    table = json.dumps(VISUALS["table-volume"].document)
    shades = re.findall(r"'(#\w{6})'", table)

    assert len(texts) >= 4 and len(shades) >= 4
    for text in texts:
        assert contrast(text, theme["background"]) >= 4.5, text
    for shade in shades:  # behind the figures, but for the line between them
        assert contrast(theme["foreground"], shade) >= 4.5, shade
    for name, text in (("header-title", "#FFFFFF"), ("header-as-of", "#FFFFFF"), ("header-trend-note", "#4B5768")):
        header, _, behind = json.dumps(VISUALS[name].document).partition('"background"')
        assert text in header
        assert contrast(text, re.search(r"'(#\w{6})'", behind)[1]) >= 4.5


def test_no_visual_overlaps_another_or_leaves_the_page():
    for page in REPORT.pages:
        boxes = [visual.document["position"] for visual in page.visuals]
        for box in boxes:
            assert box["x"] >= 0 and box["x"] + box["width"] <= page.definition["width"]
            assert box["y"] >= 0 and box["y"] + box["height"] <= page.definition["height"]
        for one, other in combinations(boxes, 2):
            apart_in_x = one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"]
            apart_in_y = one["y"] + one["height"] <= other["y"] or other["y"] + other["height"] <= one["y"]
            assert apart_in_x or apart_in_y


def test_every_visual_says_what_it_shows():
    for name, visual in VISUALS.items():
        assert visual.container("general", "altText"), name
        if not name.startswith("header-"):
            assert visual.container("title", "text") and visual.container("subTitle", "text"), name


@pytest.mark.parametrize("page", REPORT.pages, ids=lambda page: page.title)
def test_the_credit_stands_under_the_title_of_each_page(page: Page):
    title, source = (
        next(visual for visual in page.visuals if visual.document["name"] == name).document["position"]
        for name in ("header-title", "header-source")
    )

    assert source["y"] == title["y"] + title["height"] and source["x"] == title["x"]
    (shown,) = [visual.field("Data").name for visual in page.visuals if visual.document["name"] == "header-source"]
    assert shown == "Source"
