"""Build the dashboard from its .pbip source and rows: the .pbix, the .pbit and the preview pictures.

  bash sql/local_mysql.sh --with powerbi/requirements.txt python powerbi/build_dashboard.py

puts the sample market inside; add --from-mysql for your own table (its newest HistoryDays), and --out FOLDER to leave
the files here as they are.

The dashboard is edited in the source alone: tables, measures and queries in the .SemanticModel folder (TMDL), pages and
visuals in the .Report folder (PBIR).
"""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import unicodedata
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path.append(str(PROJECT_DIR))  # the scripts stand one folder up

from etl_crypto import (  # noqa: E402
    COLUMNS,
    ConfigError,
    DataError,
    Settings,
    connect,
    end_process,
    explain,
    make_parser,
    mysql_errors,
    parse_settings,
    print_result,
    read_market,
    read_snapshot,
    run_script,
)
from segment_and_load import TIERS, assign_tiers  # noqa: E402

if TYPE_CHECKING:
    import sqlite3

    import pandas as pd

log = logging.getLogger("build_dashboard")

NAME = "CryptoMarketAnalytics"
SOURCE = PROJECT_DIR / "powerbi"
MODEL_DIR = SOURCE / f"{NAME}.SemanticModel" / "definition"
REPORT_DIR = SOURCE / f"{NAME}.Report"
THEME = REPORT_DIR / "StaticResources" / "RegisteredResources" / "CryptoMarketTheme.json"
SAMPLE_FILES = sorted((PROJECT_DIR / "tests" / "data").glob("*.json.gz"))
MANY_ROWS = 200_000
AROUND = 7  # times before a time, and times after it, that its coins are compared with
ADDED = ("coin", "size_rank", "is_thin")  # columns of the model that the database has not

# The files' own formats.
CONTAINER_VERSION = "1.32"  # what Desktop writes when the report inside is PBIR (1.33: with TMDL scripts, too)
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the same source makes the same .pbit
CONTENT_TYPES = (
    '\ufeff<?xml version="1.0" encoding="utf-8"?>'
    '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="json" ContentType="" />{overrides}</Types>'
)
JSON_PARTS = ("Settings", "Metadata")
PLURALS = {"changedProperty": "changedProperties", "hierarchy": "hierarchies"}  # of TMSL


# ------------------------------------------------------------------------------------------------ rows for the model


def read_sample_rows(columns: list[str]) -> pd.DataFrame:
    """The sample market as the pipeline writes it, with its default tiers."""
    import pandas as pd

    settings = parse_settings({}, needs_database=False)
    markets = (read_market(read_snapshot(settings, path)) for path in SAMPLE_FILES)
    rows = pd.DataFrame([row for market in markets for row in market.rows], columns=COLUMNS)
    rows["market_cap_tier"] = assign_tiers(rows["market_cap"].astype("float64"), settings)
    return rows[columns]


def read_mysql_rows(settings: Settings, columns: list[str], days: float) -> pd.DataFrame:
    """The rows of the newest `days` (0: all) of crypto_prices, as the query in the model reads them."""
    import pandas as pd

    since = "timestamp > (SELECT MAX(timestamp) FROM crypto_prices) - INTERVAL %s SECOND" if days > 0 else "%s <= 0"
    with closing(connect(settings)) as connection, closing(connection.cursor()) as cursor:
        try:
            cursor.execute(
                f"SELECT {', '.join(columns)} FROM crypto_prices WHERE {since} ORDER BY timestamp, coin_id",
                (round(days * 86400),),
            )
            rows = pd.DataFrame(cursor.fetchall(), columns=columns)
        except mysql_errors() as error:
            raise explain(error, settings) from error
    if rows.empty:
        raise DataError(
            f"{settings.mysql_database}.crypto_prices is empty: run pipeline_orchestrator.py first, or build without"
            " --from-mysql to have the sample market inside"
        )
    if len(rows) > MANY_ROWS:
        log.warning(
            "%d rows go into the .pbix, and their pictures take minutes: lower HistoryDays in expressions.tmdl, or"
            " build without --from-mysql and refresh in Power BI",
            len(rows),
        )
    if untiered := rows["market_cap_tier"].isna().sum():
        log.warning("%d rows have no tier and stand under (Blank): run segment_and_load.py, then build again", untiered)
    return rows


def describe_coins(rows: pd.DataFrame) -> pd.DataFrame:
    """What the query in the model adds to the rows: `coin` and `size_rank`, by coin_id, by the same rules.

    A label is that of one coin: its newest name and symbol, with the id where coins share them, whatever their case, as
    Power BI tells none. The rank is by market cap in the newest snapshot: 1 is the largest, NaN a coin not in it.
    """
    last = rows.sort_values("timestamp").drop_duplicates("coin_id", keep="last").set_index("coin_id")
    names, symbols = (last[column].map(without_control_characters) for column in ("name", "symbol"))
    labels = (names + symbols.str.upper().map(" ({})".format).where(symbols != "", "")).where(names != "", last.index)
    needs_id = labels.str.lower().duplicated(keep=False) | labels.str.contains(" - ", regex=False)
    present = last[last["timestamp"] == rows["timestamp"].max()].sort_index()
    sizes = present["market_cap"].astype("float64").rank(method="first", ascending=False, na_option="bottom")
    return labels.where(~needs_id, labels + " - " + labels.index).to_frame("coin").assign(size_rank=sizes)


def find_thin_times(rows: pd.DataFrame) -> pd.DataFrame:
    """What the query in the model adds to the rows: `is_thin`, by timestamp, by the same rule.

    1 for a time that is left out of market cap over time, as fewer than half as many coins have a market cap then as at
    one of the AROUND times before it and at one of the AROUND times after it. The newest time has none after it, so it
    is never left out, and neither is a lasting step: fewer coins from some day on, or more.
    """
    counts = (rows["market_cap"].astype("float64") > 0).groupby(rows["timestamp"]).sum().sort_index()
    before = counts.shift().rolling(AROUND, min_periods=1).max()
    after = counts[::-1].shift().rolling(AROUND, min_periods=1).max()[::-1]
    return ((2 * counts < before) & (2 * counts < after)).astype("float64").to_frame("is_thin")


def without_control_characters(text: str) -> str:
    """`text` as Power Query's Text.Clean and Text.Trim leave it."""
    return "".join(char for char in text if unicodedata.category(char) != "Cc").strip()


def to_records(rows: pd.DataFrame) -> list[dict[str, object]]:
    """Rows as the library takes them: None for NULL, and Python's own types."""
    return rows.astype("object").where(rows.notna(), None).to_dict("records")


# ---------------------------------------------------------------------------------------------------- the data model


def read_model(folder: Path) -> dict[str, Any]:
    """The model in the TMDL files of `folder` as TMSL, which is what DataModelSchema in a .pbit holds."""
    from pbix_mcp.formats.tmdl_reader import parse_tmdl_document

    found: dict[str, dict[str, dict]] = {}
    order: list[tuple[str, str]] = []
    for path in [*sorted(folder.glob("*.tmdl")), *sorted(folder.glob("tables/*.tmdl"))]:
        text = path.read_text(encoding="utf-8")
        described = {
            (kind, name.strip("'")): " ".join(line.strip().removeprefix("///").strip() for line in lines.splitlines())
            for lines, kind, name in re.findall(r"((?:^\t*///.*\n)+)\t*(\w+) ('[^']+'|\S+)", text, re.M)
        }
        for node in parse_tmdl_document(re.sub(r"^\t*///.*\n", "", text, flags=re.M)):
            if node.kind == "ref":
                order.append(tuple(node.name.split()))
            else:
                found.setdefault(node.kind, {})[node.name] = to_tmsl(node, described)
    (database,), (model,) = found["database"].values(), found["model"].values()
    del model["name"]
    for kind in ("table", "relationship", "expression"):
        listed = [name for listed_kind, name in order if listed_kind == kind] or list(found[kind])
        model[f"{kind}s"] = [found[kind][name] for name in listed]
    return {
        "name": database["name"],
        "compatibilityLevel": int(database["compatibilityLevel"]),
        "model": model,
    }


def to_tmsl(node: Any, described: dict[tuple[str, str], str]) -> dict[str, Any]:
    """One object of a TMDL document, with all that is in it, as TMSL."""

    def reference(text: str) -> list[str]:
        return [name.strip("'") for name in re.findall(r"'[^']+'|[^.]+", text)]

    tmsl: dict[str, Any] = {"name": node.name} | {flag: True for flag in sorted(node.flags)} | node.props
    if description := described.get((node.kind, node.name)):
        tmsl["description"] = description
    match node.kind:
        case "annotation":
            return {"name": node.name, "value": node.expression}
        case "changedProperty":  # what was set by hand in Desktop
            return {"property": node.expression}
        case "partition":
            tmsl["source"] = {"type": node.expression, "expression": node.child("source").expression}
            return tmsl
        case "relationship":
            for end in ("from", "to"):
                tmsl[f"{end}Table"], tmsl[f"{end}Column"] = reference(tmsl.pop(f"{end}Column"))
        case "measure" | "expression":
            tmsl["expression"] = node.expression
            if node.kind == "expression":
                tmsl["kind"] = "m"
    for child in node.children:
        if child.kind == "dataAccessOptions":
            tmsl[child.kind] = {flag: True for flag in sorted(child.flags)}
        elif child.kind not in node.flags:
            tmsl.setdefault(PLURALS.get(child.kind, f"{child.kind}s"), []).append(to_tmsl(child, described))
    return tmsl


def history_days(model: dict[str, Any]) -> float:
    """The value of the parameter HistoryDays. Raises ConfigError."""
    (expression,) = (e["expression"] for e in model["model"]["expressions"] if e["name"] == "HistoryDays")
    text = expression.partition(" meta ")[0]
    try:
        return float(text)
    except ValueError:
        raise ConfigError(
            f"HistoryDays is {text!r} in expressions.tmdl: set it to a number of days, or 0 for all"
        ) from None


def columns_to_read(model: dict[str, Any]) -> list[str]:
    """The columns of the database that the model has, and those that make the label of a coin."""
    (table,) = (table for table in model["model"]["tables"] if table["name"] == "crypto_prices")
    columns = [column["name"] for column in table["columns"]]
    return [*(column for column in columns if column not in ADDED), "name", "symbol"]


def build_parts(model: dict[str, Any], rows: dict[str, list[dict]]) -> dict[str, bytes]:
    """The parts of a .pbix with `rows` in its tables; the report is not among them."""
    from pbix_mcp.builder import PBIXBuilder
    from pbix_mcp.formats.abf_rebuild import rebuild_abf_with_modified_sqlite
    from pbix_mcp.formats.datamodel_roundtrip import compress_datamodel, decompress_datamodel

    builder = PBIXBuilder(NAME)
    for table in model["model"]["tables"]:
        columns = [{"name": column["name"], "data_type": column["dataType"]} for column in table["columns"]]
        builder.add_table(table["name"], columns, rows=rows[table["name"]])
        for measure in table.get("measures", []):
            builder.add_measure(
                table["name"],
                measure["name"],
                measure["expression"],
                description=measure.get("description", ""),
                format_string=measure.get("formatString"),
                data_type=measure_type(measure),
            )
    for relationship in model["model"]["relationships"]:
        ends = (relationship[key] for key in ("fromTable", "fromColumn", "toTable", "toColumn"))
        builder.add_relationship(*ends, auto_orient=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        archive = zipfile.ZipFile(io.BytesIO(builder.build()))
    for warning in caught:  # such as texts that Power BI will take for one
        log.warning("%s", warning.message)
    parts = {part: archive.read(part) for part in ("DiagramLayout", "Settings", "Metadata", "DataModel")}
    backup = decompress_datamodel(parts["DataModel"])
    backup = rebuild_abf_with_modified_sqlite(backup, lambda metadata: complete_metadata(metadata, model))
    parts["DataModel"] = compress_datamodel(backup, original_dm=parts["DataModel"])
    return parts


def measure_type(measure: dict[str, Any]) -> str:
    """What a measure gives, as its format tells it: texts have none."""
    pattern = measure.get("formatString")
    return "String" if pattern is None else "DateTime" if "yyyy" in pattern else "Double"


# What the library writes otherwise than Power BI Desktop, in 25 of whose files it was compared.
CORRECTIONS = (
    # Desktop has 19 (the type is the explicit one) in 4,120 of 4,120 columns with data; the library repeats the type.
    "UPDATE [Column] SET InferredDataType = 19 WHERE Type = 1",
    # Desktop stores dates in dictionaries of real numbers (8); the library calls them dictionaries of dates (9).
    "UPDATE DictionaryStorage SET DataType = 8 WHERE DataType = 9",
    # In Desktop's files none of these is NULL: 0 is "none", and the time is that of the change.
    "UPDATE Culture SET LinguisticMetadataID = 0 WHERE LinguisticMetadataID IS NULL",
    "UPDATE Expression SET QueryGroupID = 0, ParameterValuesColumnID = 0, ExpressionSourceID = 0,"
    " ModifiedTime = (SELECT ModifiedTime FROM Model)",
)


def complete_metadata(metadata: sqlite3.Connection, model: dict[str, Any]) -> None:
    """Write into the model's own database what the library's builder does not: the rest of the TMDL."""
    from pbix_mcp import server
    from pbix_mcp.formats.tmdl_reader import parse_tmdl_folder

    server._apply_tmdl_metadata(metadata, parse_tmdl_folder(str(MODEL_DIR)))
    annotate = "UPDATE Annotation SET Value = ? WHERE Name = ? AND ObjectType = ? AND ObjectID = ?"
    for annotation in model["model"].get("annotations", []):
        metadata.execute(annotate, (annotation["value"], annotation["name"], 1, 1))
    for expression in model["model"]["expressions"]:
        metadata.execute(
            "UPDATE Expression SET Description = ? WHERE Name = ?", (expression.get("description"), expression["name"])
        )
    for table in model["model"]["tables"]:
        (table_id,) = metadata.execute("SELECT ID FROM [Table] WHERE Name = ?", (table["name"],)).fetchone()
        metadata.execute("UPDATE [Table] SET Description = ? WHERE ID = ?", (table.get("description"), table_id))
        for column in table["columns"]:
            (column_id,) = metadata.execute(
                "SELECT ID FROM [Column] WHERE TableID = ? AND ExplicitName = ?", (table_id, column["name"])
            ).fetchone()
            metadata.execute("UPDATE [Column] SET Description = ? WHERE ID = ?", (column.get("description"), column_id))
            for annotation in column.get("annotations", []):
                metadata.execute(annotate, (annotation["value"], annotation["name"], 4, column_id))
    for correction in CORRECTIONS:
        metadata.execute(correction)
    metadata.commit()


# --------------------------------------------------------------------------------------------------------- the report


class Page(NamedTuple):
    """A page of the report, as its PBIR files hold it."""

    definition: dict[str, Any]
    visuals: list[dict[str, Any]]  # from back to front


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_pages() -> list[Page]:
    """The pages of the report, in their order."""
    pages = REPORT_DIR / "definition" / "pages"
    return [
        Page(
            read_json(pages / name / "page.json"),
            sorted(
                (read_json(path) for path in pages.glob(f"{name}/visuals/*/visual.json")),
                key=lambda visual: visual["position"]["z"],
            ),
        )
        for name in read_json(pages / "pages.json")["pageOrder"]
    ]


def read_report_parts() -> dict[str, bytes]:
    """The report as it goes into the container: every PBIR file and theme byte for byte, by the name of its part."""
    return {
        f"Report/{path.relative_to(REPORT_DIR).as_posix()}": path.read_bytes()
        for folder in ("StaticResources", "definition")
        for path in sorted((REPORT_DIR / folder).glob("**/*"))
        if path.is_file()
    }


# ---------------------------------------------------------------------------------------------------------- the files


def write_container(path: Path, parts: dict[str, bytes]) -> None:
    """Write a .pbix or .pbit, whole or not at all."""
    overrides = (
        f'<Override PartName="/{part}" ContentType="{"application/json" if part in JSON_PARTS else ""}" />'
        for part in parts
        if not part.endswith(".json")
    )
    content = {"[Content_Types].xml": CONTENT_TYPES.format(overrides="".join(overrides)).encode()} | parts
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with zipfile.ZipFile(unfinished, "w") as archive:
            for part, data in content.items():
                # Desktop reads the model where it lies in the file: it is stored, all else is deflated
                method = zipfile.ZIP_STORED if part == "DataModel" else zipfile.ZIP_DEFLATED
                archive.writestr(zipfile.ZipInfo(part, ZIP_TIME), data, method)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def utf16(document: Any) -> bytes:
    """A text, or JSON, as most parts hold it: UTF-16 without a byte order mark."""
    text = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False)
    return text.encode("utf-16-le")


def build(rows: pd.DataFrame, model: dict[str, Any], out: Path) -> Iterator[Path]:
    """Write all built files to `out`; each path comes when it is written."""
    from draw_preview import draw_previews

    rows = rows.join(describe_coins(rows), on="coin_id").join(find_thin_times(rows), on="timestamp")
    rows = rows.drop(columns=["name", "symbol"])
    tiers = [{"market_cap_tier": tier, "tier_order": order} for order, tier in enumerate(TIERS, start=1)]
    parts = build_parts(model, {"crypto_prices": to_records(rows), "Tier": tiers})
    data_model = parts.pop("DataModel")
    common = {"Version": utf16(CONTAINER_VERSION)} | parts | read_report_parts()

    dashboard = out / f"{NAME}.pbix"
    write_container(dashboard, common | {"DataModel": data_model})
    yield dashboard
    write_container(out / f"{NAME}.pbit", common | {"DataModelSchema": utf16(model)})
    yield out / f"{NAME}.pbit"
    yield from draw_previews(dashboard, model, read_pages(), read_json(THEME), out)


def require_packages() -> None:
    """Raise ConfigError unless the packages that only the build needs are there."""
    for module, package in (("pbix_mcp", "pbix-mcp"), ("matplotlib", "matplotlib")):
        if find_spec(module) is None:
            raise ConfigError(
                f"the Python package {package} is missing: {sys.executable} -m pip install -r powerbi/requirements.txt,"
                " or build by bash sql/local_mysql.sh --with powerbi/requirements.txt python powerbi/build_dashboard.py"
            )


def main(argv: list[str] | None = None) -> int:
    """Command line in, exit code out."""
    parser = make_parser("build_dashboard.py", __doc__)
    parser.add_argument("--from-mysql", action="store_true", help="put your own table inside, not the sample market")
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=SOURCE, help="write the built files there")
    parser.add_argument("--env-file", metavar="PATH", type=Path, help="read the settings here, not in .env")
    parser.set_defaults(quiet=False, verbose=False)
    options = parser.parse_args(argv)

    def work(settings: Settings) -> int:
        require_packages()
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {options.out} cannot be made ({error.strerror}): name another folder") from error
        model = read_model(MODEL_DIR)
        columns = columns_to_read(model)
        if options.from_mysql:
            rows = read_mysql_rows(settings, columns, history_days(model))
        else:
            rows = read_sample_rows(columns)
        print_result(f"{len(rows)} rows of {rows['timestamp'].nunique()} snapshots")
        try:
            for path in build(rows, model, options.out):
                print_result(f"wrote {path}")
        except OSError as error:
            raise ConfigError(
                f"cannot write {error.filename or options.out} ({error.strerror}): free the disk, close what has the"
                " file open, or name another folder by --out"
            ) from error
        return 0

    return run_script(log, options, work, needs_database=options.from_mysql)


if __name__ == "__main__":
    end_process(main())
