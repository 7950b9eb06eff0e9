"""The built .pbix and .pbit hold what the source says, and the committed files and pictures are what it makes."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from build_dashboard import NAME, SOURCE
from matplotlib import image
from pbix_mcp.formats.abf_rebuild import read_metadata_sqlite
from pbix_mcp.formats.datamodel_roundtrip import decompress_datamodel
from pbix_mcp.formats.model_reader import ModelReader

from tests.dashboard.markets import read_parts
from tests.dashboard.source import MEASURES, MODEL, TABLES, TEXTS


def read_metadata(path: Path) -> dict[str, list[tuple]]:
    """What a .pbix says of its model: every table of its own database that a TMDL file has a word for."""
    queries = {
        "model": "SELECT Culture, DefaultPowerBIDataSourceVersion, DiscourageImplicitMeasures FROM Model",
        "tables": "SELECT Name, Description, IsHidden, LineageTag FROM [Table] WHERE Name NOT LIKE '%$%'",
        "columns": "SELECT t.Name, c.ExplicitName, c.ExplicitDataType, c.IsHidden, c.FormatString, c.SummarizeBy,"
        " c.Description, c.LineageTag, s.ExplicitName FROM [Column] c JOIN [Table] t ON t.ID = c.TableID"
        " LEFT JOIN [Column] s ON s.ID = c.SortByColumnID WHERE t.Name NOT LIKE '%$%'",
        "measures": "SELECT Name, Expression, FormatString, Description, DisplayFolder, LineageTag, IsHidden, DataType"
        " FROM Measure",
        "queries": "SELECT Name, QueryDefinition FROM Partition WHERE QueryDefinition IS NOT NULL",
        "parameters": "SELECT Name, Expression, Description FROM Expression",
        "annotations": "SELECT ObjectType, Name, Value FROM Annotation",
    }
    with closing(open_metadata(path)) as metadata:
        return {name: sorted(metadata.execute(query).fetchall(), key=repr) for name, query in queries.items()}


def open_metadata(path: Path) -> sqlite3.Connection:
    metadata = sqlite3.connect(":memory:")
    metadata.deserialize(read_metadata_sqlite(decompress_datamodel(read_parts(path)["DataModel"])))
    return metadata


@pytest.mark.parametrize("name", [f"{NAME}.pbix", f"{NAME}.pbit"])
def test_the_committed_files_are_what_the_source_makes(sample: Path, name: str):
    committed, built = read_parts(SOURCE / name), read_parts(sample / name)

    assert committed.keys() == built.keys()
    for part in committed.keys() - {"DataModel"}:
        assert committed[part] == built[part], f"{part} differs: run python powerbi/build_dashboard.py"


def test_the_committed_model_is_what_the_source_makes(sample: Path):
    committed, built = SOURCE / f"{NAME}.pbix", sample / f"{NAME}.pbix"

    assert read_metadata(committed) == read_metadata(built)
    for table in TABLES:
        one, other = (ModelReader(str(path)).get_table(table) for path in (committed, built))
        assert one["columns"] == other["columns"]
        assert len(one["rows"]) and one["rows"] == other["rows"]


@pytest.mark.parametrize("name", ["preview-market-overview.png", "preview-market-trends.png"])
def test_the_committed_pictures_are_what_the_source_makes(sample: Path, name: str):
    committed, built = (image.imread(folder / name) for folder in (SOURCE, sample))

    assert committed.shape == built.shape
    different = (abs(committed - built) > 0.1).any(axis=2).mean()
    assert different < 0.001, "run python powerbi/build_dashboard.py"  # a machine may round a pixel otherwise


def test_a_built_model_says_all_that_the_source_says(sample: Path):
    metadata = read_metadata(sample / f"{NAME}.pbix")

    words = ("name", "expression", "formatString", "description", "displayFolder", "lineageTag")
    assert {row[:-1] for row in metadata["measures"]} == {
        (*(measure.get(word) for word in words), measure.get("isHidden", False)) for measure in MEASURES.values()
    }
    types, codes = {"string": 2, "int64": 6, "double": 8, "dateTime": 9}, {"none": 2}
    assert {row for row in metadata["columns"] if not str(row[1]).startswith("RowNumber")} == {
        (
            table["name"],
            column["name"],
            types[column["dataType"]],
            column.get("isHidden", False),
            column.get("formatString"),
            codes[column["summarizeBy"]],
            column["description"],
            column["lineageTag"],
            column.get("sortByColumn"),
        )
        for table in TABLES.values()
        for column in table["columns"]
    }
    assert dict(metadata["queries"]) == {
        table["name"]: partition["source"]["expression"]
        for table in TABLES.values()
        for partition in table["partitions"]
    }
    assert metadata["parameters"] == sorted(
        (each["name"], each["expression"], each["description"]) for each in MODEL.tmsl["model"]["expressions"]
    )
    noted = [
        (number, each["name"], each["value"])
        for number, objects in (
            (1, [MODEL.tmsl["model"]]),
            (3, TABLES.values()),
            (4, [column for table in TABLES.values() for column in table["columns"]]),
            (8, MEASURES.values()),
            (41, MODEL.tmsl["model"]["expressions"]),
        )
        for document in objects
        for each in document.get("annotations", [])
    ]
    assert (1, "__PBI_TimeIntelligenceEnabled", "0") in noted
    assert metadata["annotations"] == sorted(noted, key=repr)


def test_the_metadata_is_as_desktop_writes_it(sample: Path):
    with closing(open_metadata(sample / f"{NAME}.pbix")) as metadata:

        def read(query: str) -> set[tuple]:
            return set(metadata.execute(query).fetchall())

        keys = "SELECT TableID FROM [Column] WHERE IsKey GROUP BY TableID HAVING COUNT(*) > 1"
        assert read(keys) == set()  # Desktop refuses a table with two
        assert read("SELECT InferredDataType FROM [Column] WHERE Type = 1") == {(19,)}
        assert 9 not in {code for (code,) in read("SELECT DataType FROM DictionaryStorage")}
        none = "SELECT QueryGroupID, ParameterValuesColumnID, ExpressionSourceID, ModifiedTime IS NULL FROM Expression"
        assert read(none) == {(0, 0, 0, 0)}
        assert read("SELECT LinguisticMetadataID FROM Culture") == {(0,)}
        codes = {name: code for name, code in read("SELECT Name, DataType FROM Measure")}
    assert {codes[name] for name in TEXTS} == {2} and codes["Latest Snapshot"] == 9
    assert {codes[name] for name in codes.keys() - TEXTS - {"Latest Snapshot"}} == {8}


@pytest.mark.parametrize("name", [f"{NAME}.pbix", f"{NAME}.pbit"])
def test_the_container_has_the_version_of_a_report_in_pbir(sample: Path, name: str):
    assert read_parts(sample / name)["Version"].decode("utf-16-le") == "1.32"


def test_the_template_holds_the_whole_model_and_no_row(sample: Path):
    parts = read_parts(sample / f"{NAME}.pbit")

    assert json.loads(parts["DataModelSchema"].decode("utf-16-le")) == MODEL.tmsl
    assert "DataModel" not in parts


@pytest.mark.parametrize("name", [f"{NAME}.pbix", f"{NAME}.pbit"])
def test_the_report_in_a_built_file_is_the_source_byte_for_byte(sample: Path, name: str):
    folder = SOURCE / f"{NAME}.Report"
    source = {
        f"Report/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for part in ("definition", "StaticResources")
        for path in (folder / part).rglob("*.json")
    }

    parts = read_parts(sample / name)

    assert len(source) > 20
    assert {part: data for part, data in parts.items() if part.startswith("Report")} == source
