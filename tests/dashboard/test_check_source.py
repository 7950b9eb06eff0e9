"""A mistake in the dashboard's source is named with its file; what Desktop and people may write as well is built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from build_dashboard import NAME
from check_source import read_source
from report_source import SourceError

from tests.dashboard.markets import read_parts
from tests.dashboard.source import DEFINITION, GAINERS_JSON, PRICES_TMDL, THEME_JSON, TIER_TMDL, change, run_copy

RELATIONSHIPS_TMDL = f"{NAME}.SemanticModel/definition/relationships.tmdl"

MISTAKES = {
    "a closing bracket missing in a measure": (PRICES_TMDL, "REMOVEFILTERS())", "REMOVEFILTERS()", "expected"),
    "a measure of a column that is not there": (
        PRICES_TMDL,
        "SUM(crypto_prices[market_cap])",
        "SUM(crypto_prices[cap])",
        "cap",
    ),
    "a measure of a measure that is not there": (
        PRICES_TMDL,
        "DIVIDE([Total Market Cap],",
        "DIVIDE([Total Cap],",
        "Total Cap",
    ),
    "a measure of a function that is not there": (
        PRICES_TMDL,
        "COUNTROWS(crypto_prices)",
        "COUNTROW(crypto_prices)",
        "COUNTROW",
    ),
    "a measure of a variable that is not there": (
        PRICES_TMDL,
        "KEEPFILTERS(crypto_prices[timestamp] = latest)",
        "KEEPFILTERS(crypto_prices[timestamp] = newest)",
        "newest",
    ),
    "a function with too few arguments": (
        PRICES_TMDL,
        "DIVIDE([Total Market Cap], CALCULATE([Total Market Cap], REMOVEFILTERS()))",
        "DIVIDE([Total Market Cap])",
        "DIVIDE",
    ),
    "a variable named like a word of DAX": (
        PRICES_TMDL,
        "VAR price = [Price]",
        "VAR value = [Price]\n\t\t\tVAR price = value",
        "value",
    ),
    "two measures of one name": (PRICES_TMDL, "measure 'Volume Rank'", "measure 'gainer rank'", "twice"),
    "a measure without an expression": (
        PRICES_TMDL,
        "measure 'Market Cap Share' = DIVIDE([Total Market Cap], CALCULATE([Total Market Cap], REMOVEFILTERS()))",
        "measure 'Market Cap Share' =",
        "expression is missing",
    ),
    "a column of an unknown type": (PRICES_TMDL, "dataType: double", "dataType: float", "dataType"),
    "a misspelled word": (PRICES_TMDL, "formatString: #,0", "formatStrng: #,0", "formatStrng"),
    "a word that the .pbix would lose": (TIER_TMDL, "isHidden", "isKey", "isKey"),
    "spaces in place of a tab": (PRICES_TMDL, "\tcolumn coin_id", "    column coin_id", "tab"),
    "a sort by a column that is not there": (
        TIER_TMDL,
        "sortByColumn: tier_order",
        "sortByColumn: order",
        "sorted by order",
    ),
    "a bracket missing in a query": (
        PRICES_TMDL,
        '{{"timestamp", Order.Descending}}), 1)',
        '{{"timestamp", Order.Descending}}, 1)',
        "is not closed",
    ),
    "a bracket too many in a query": (TIER_TMDL, '{"Unknown", 5}}', '{"Unknown", 5}}}', "closes nothing"),
    "a text without an end in a query": (TIER_TMDL, '{"Unknown", 5}}', '{"Unknown, 5}}', "does not end"),
    "a step that the query does not have": (
        f"{NAME}.SemanticModel/definition/tables/Time.tmdl",
        "Table.Distinct(Table.SelectColumns(Recent,",
        "Table.Distinct(Table.SelectColumns(Recentt,",
        "Recentt",
    ),
    "a relationship to a column that is not there": (
        f"{NAME}.SemanticModel/definition/relationships.tmdl",
        "Tier.market_cap_tier",
        "Tier.tier",
        "Tier.tier",
    ),
    "a relationship of two types": (
        f"{NAME}.SemanticModel/definition/relationships.tmdl",
        "toColumn: Tier.market_cap_tier",
        "toColumn: Tier.tier_order",
        "two types",
    ),
    "a table that no file has": (
        f"{NAME}.SemanticModel/definition/model.tmdl",
        "ref table Tier",
        "ref table Tiers",
        "Tiers",
    ),
    "a comma too many in a visual": (GAINERS_JSON, '"visualType": "tableEx",', '"visualType": "tableEx",,', "line"),
    "a visual of a measure that is not there": (
        GAINERS_JSON,
        '"Property": "Price Label"',
        '"Property": "Prices"',
        "Prices",
    ),
    "a visual of a table that is not there": (
        GAINERS_JSON,
        '"Entity": "crypto_prices"',
        '"Entity": "prices"',
        "prices",
    ),
    "a queryRef that is not the field's": (
        GAINERS_JSON,
        '"queryRef": "crypto_prices.Price Label"',
        '"queryRef": "crypto_prices.Price"',
        "queryRef",
    ),
    "a format for a column that is not shown": (
        GAINERS_JSON,
        '"metadata": "crypto_prices.',
        '"metadata": "prices.',
        "does not show",
    ),
    "a number without its letter": (GAINERS_JSON, '"Value": "1L"', '"Value": "one"', "literal"),
    "a visual without a place": (GAINERS_JSON, '"position"', '"place"', "position"),
    "a page that is not there": (
        f"{DEFINITION}/pages/pages.json",
        "07ccb59ede2a29c4ffe0",
        "17ccb59ede2a29c4ffe0",
        "pageOrder",
    ),
    "a theme that is not registered": (
        f"{DEFINITION}/report.json",
        '"name": "CryptoMarketTheme.json",\n      "reportVersion',
        '"name": "Theme.json",\n      "reportVersion',
        "Theme.json",
    ),
}


MISTAKES |= {
    "a calculated column": (TIER_TMDL, "column tier_order", "column tier_order = 1", "calculated"),
    "a relationship twice": (
        RELATIONSHIPS_TMDL,
        "relationship 3a2a",
        "relationship other\n\tfromColumn: crypto_prices.coin_id\n\ttoColumn: Coin.coin_id\n\nrelationship 3a2a",
        "the same columns",
    ),
    "a flag with a value": (TIER_TMDL, "\t\tisHidden", "\t\tisHidden: true", "without a value"),
    "an annotation without a value": (
        TIER_TMDL,
        "annotation PBI_ResultType = Table",
        "annotation PBI_ResultType",
        "value",
    ),
    "a description of nothing": (TIER_TMDL, "\tpartition Tier", "\t/// of nothing\n\n\tpartition Tier", "///"),
    "a column sorted by itself": (TIER_TMDL, "sortByColumn: tier_order", "sortByColumn: market_cap_tier", "no other"),
    "a parameter that is none": (
        f"{NAME}.SemanticModel/definition/expressions.tmdl",
        "HistoryDays = 90 meta [IsParameterQuery=true, ",
        "HistoryDays = 90 meta [",
        "no parameter",
    ),
    "a key twice": (
        GAINERS_JSON,
        '"visualType": "tableEx",',
        '"visualType": "tableEx", "visualType": "tableEx",',
        "twice",
    ),
    "a text in place of a number": (GAINERS_JSON, '"x": ', '"x": "1", "angle": ', "pixels"),
    "an object in place of a list": (GAINERS_JSON, '"grid": [', '"grid": {"0": [', "Expecting"),
    "a number without a suffix": (GAINERS_JSON, '"Value": "1L"', '"Value": "1"', "literal"),
    "a page that is opened and is not there": (
        f"{DEFINITION}/pages/pages.json",
        '"activePageName": "7590ce2b48ed4e957b33"',
        '"activePageName": "none"',
        "activePageName",
    ),
    "no page at all": (
        f"{DEFINITION}/pages/pages.json",
        '"pageOrder": [',
        '"pageOrder": [], "others": [',
        "pageOrder",
    ),
    "a sort by a sum": (
        GAINERS_JSON,
        '"sort": [',
        '"sort": [{"field": {"Aggregation": {"Expression": {}, "Function": 0}}, "direction": "Ascending"}, ',
        "sorted by",
    ),
    "a theme of another name": (THEME_JSON, '"name": "CryptoMarketTheme.json"', '"name": "Theme"', "its name"),
    "a theme of another form": (THEME_JSON, '"visualStyles": {', '"visualStyles": [], "others": {', "visualStyles"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_source_is_named_with_its_file(copied_source: Path, mistake: str):
    file, old, new, reason = MISTAKES[mistake]
    change(copied_source, file, old, new)

    with pytest.raises(SourceError) as raised:
        read_source(copied_source / f"{NAME}.SemanticModel" / "definition", copied_source / f"{NAME}.Report")

    assert str(copied_source) in str(raised.value) and Path(file).name in str(raised.value)
    assert reason in str(raised.value)


def test_what_desktop_and_people_write_otherwise_is_built_all_the_same(copied_source: Path):
    pages = copied_source / DEFINITION / "pages"
    for path in pages.glob("*/page.json"):  # no background of its own, and one title for both
        page = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({key: page[key] for key in page if key != "objects"} | {"displayName": "Market/1"}))
    cultures = copied_source / f"{NAME}.SemanticModel" / "definition" / "cultures"
    cultures.mkdir()
    (cultures / "en-US.tmdl").write_text(
        "cultureInfo en-US\n\n\tlinguisticMetadata =\n"
        '\t\t\t{\n\t\t\t  "Version": "1.0.0"\n\t\t\t}\n\t\tcontentType: json\n'
    )
    change(
        copied_source,
        f"{NAME}.SemanticModel/definition/model.tmdl",
        "ref table Tier",
        "ref cultureInfo en-US\nref table Tier",
    )
    change(copied_source, PRICES_TMDL, "formatString: #,0\n", 'formatString: "#,0"" coins"""\n')
    change(copied_source, PRICES_TMDL, "+0.00%;-0.00%;0.00%", "Percent")
    change(copied_source, PRICES_TMDL, "// COUNT leaves", "// as [Gainer Rank] does, COUNT leaves")
    change(
        copied_source,
        PRICES_TMDL,
        "measure 'Times Left Out' = CALCULATE(COUNTROWS('Time'), REMOVEFILTERS(), 'Time'[is_thin] = 1) + 0",
        "measure 'Times Left Out' = ```\n"
        "\t\t\tCALCULATE(COUNTROWS('Time'), REMOVEFILTERS(), 'Time'[is_thin] = 1) + 0\n\t\t\t```",
    )
    change(copied_source, TIER_TMDL, "\t\tisHidden\n", "\t\tisHidden\n\t\tchangedProperty = IsHidden\n\n")
    gainers = copied_source / GAINERS_JSON
    visual = json.loads(gainers.read_text(encoding="utf-8"))
    visual["visual"]["query"]["sortDefinition"]["sort"] = [
        {
            "field": visual["visual"]["query"]["queryState"]["Values"]["projections"][1]["field"],
            "direction": "Descending",
        }
    ]
    del visual["filterConfig"]
    gainers.write_bytes(b"\xef\xbb\xbf" + json.dumps(visual).replace("\n", "\r\n").encode())

    built = run_copy(copied_source)

    assert (built.returncode, built.stderr) == (0, "")
    assert len(list(copied_source.glob("preview-market-1-*.png"))) == 2
    model = json.loads(read_parts(copied_source / f"{NAME}.pbit")["DataModelSchema"].decode("utf-16-le"))
    assert '#,0" coins"' in json.dumps(model, ensure_ascii=False).replace('\\"', '"')
