"""Build the dashboard from its .pbip source and rows: the .pbix, the .pbit and the preview pictures.

  bash sql/local_mysql.sh --with powerbi/requirements.txt python powerbi/build_dashboard.py

puts the sample market inside; add --from-mysql for your own table (its newest HistoryDays), and --out FOLDER to leave
the files here as they are.

The dashboard is edited in the source alone: tables, measures and queries in the .SemanticModel folder (TMDL), pages and
visuals in the .Report folder (PBIR).
"""

from __future__ import annotations

import argparse
import gc
import io
import itertools
import json
import logging
import re
import sqlite3
import sys
import tempfile
import threading
import time
import unicodedata
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

PROJECT_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(1, str(PROJECT_DIR))  # the scripts stand one folder up; before any installed package of their name

from check_source import read_source  # noqa: E402
from pbix_query import Dashboard  # noqa: E402
from report_source import Document, Model, Report, SourceError, unquote  # noqa: E402

from etl_crypto import (  # noqa: E402
    ConfigError,
    DataError,
    Settings,
    end_process,
    make_parser,
    parse_settings,
    read_snapshot,
    run_script,
    say,
    transform,
)
from segment_and_load import TIERS, assign_tiers  # noqa: E402
from sql.connection import Database  # noqa: E402
from sql.crypto_prices import COLUMNS, read_last_days  # noqa: E402

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("build_dashboard")

NAME = "CryptoMarketAnalytics"
SOURCE = PROJECT_DIR / "powerbi"
MODEL_DIR = SOURCE / f"{NAME}.SemanticModel" / "definition"
REPORT_DIR = SOURCE / f"{NAME}.Report"
SAMPLE_FILES = sorted((PROJECT_DIR / "tests" / "data").glob("*.json.gz"))
AROUND = 7  # times before a time, and times after it, that its coins are compared with


# ------------------------------------------------------------------------------------------------ rows for the model


def read_sample_rows() -> pd.DataFrame:
    """The sample market as the pipeline writes it, with its default tiers: all columns of crypto_prices."""
    import pandas as pd

    settings = parse_settings({})
    batches = (transform(read_snapshot(settings, path)) for path in SAMPLE_FILES)
    rows = pd.DataFrame([row for batch in batches for row in batch.rows], columns=COLUMNS)
    rows["market_cap_tier"] = assign_tiers(rows["market_cap"], settings)
    return rows


def read_mysql_rows(settings: Settings, columns: list[str], days: float) -> pd.DataFrame:
    """The rows of the newest `days` (0: all) of crypto_prices, as the query in the model reads them.

    Raises DataError for an empty table, DatabaseError when there is none.
    """
    import pandas as pd

    with closing(Database(settings.server)) as database:
        found = database.transaction(partial(read_last_days, columns=columns, days=days))
    rows = pd.DataFrame(found, columns=columns)
    if rows.empty:
        raise DataError(
            f"{settings.mysql_database}.crypto_prices is empty: run pipeline_orchestrator.py first, or build without"
            " --from-mysql to have the sample market inside"
        )
    if untiered := rows["market_cap_tier"].isna().sum():
        log.warning("%d rows have no tier and stand under (Blank): run segment_and_load.py, then build again", untiered)
    return rows


def embedded_tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What the queries of the model make of these rows of crypto_prices, by table, by the same rules."""
    import pandas as pd

    texts = {column: "object" for column in ("coin_id", "symbol", "name")}
    rows = rows.astype({"timestamp": "datetime64[us]"} | texts)  # types that a frame without rows may lack
    return {
        "crypto_prices": rows,
        "Coin": describe_coins(rows),
        "Time": describe_times(rows),
        "Tier": pd.DataFrame({"market_cap_tier": TIERS, "tier_order": range(1, len(TIERS) + 1)}),
        "Compare": pd.DataFrame({"choice": ["5 largest", "10 largest"], "coins": [5, 10]}),
    }


def describe_coins(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each coin: coin_id, coin, symbol, name, size_rank.

    `coin` is a label that no other coin has: its newest name and symbol, with the id where coins share them, whatever
    their case. Ids that differ in case alone are one coin: Power BI does not tell them apart, and takes a key once.
    `size_rank` is by market cap: first the coins of the newest snapshot, 1 is the largest, then those that left it.
    """
    newest_first = rows.sort_values(["timestamp", "coin_id"], ascending=[False, True])
    last = newest_first[~newest_first["coin_id"].str.lower().duplicated()].set_index("coin_id", drop=False)
    coins = last[["coin_id"]].assign(
        symbol=last["symbol"].map(without_control_characters).str.upper(),
        name=last["name"].map(without_control_characters),
    )
    symbols = coins["symbol"].map(" ({})".format).where(coins["symbol"] != "", "")
    labels = (coins["name"] + symbols).where(coins["name"] != "", coins["coin_id"])
    needs_id = labels.str.lower().duplicated(keep=False) | labels.str.contains(" - ", regex=False)
    coins["coin"] = labels.where(~needs_id, labels + " - " + coins["coin_id"])
    sizes = last.assign(left=last["timestamp"] != rows["timestamp"].max(), size=last["market_cap"].astype("float64"))
    order = sizes.reset_index(drop=True).sort_values(["left", "size", "coin_id"], ascending=[True, False, True])
    coins = coins.reset_index(drop=True).loc[order.index].reset_index(drop=True)
    return coins.assign(size_rank=(coins.index + 1).astype("float64"))


def describe_times(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each time: timestamp, date (its midnight), is_thin.

    `is_thin` is 1 for a time that is left out of market cap over time, because fewer than half as many coins have a
    market cap then as at one of the AROUND times before it and at one of the AROUND times after it. The newest time has
    none after it, so it is never left out, and neither is a lasting step: fewer coins from some day on, or more.
    """
    counts = (rows["market_cap"].astype("float64") > 0).groupby(rows["timestamp"]).sum().sort_index()
    before = counts.shift().rolling(AROUND, min_periods=1).max()
    after = counts[::-1].shift().rolling(AROUND, min_periods=1).max()[::-1]
    is_thin = ((2 * counts < before) & (2 * counts < after)).astype("float64")
    times = is_thin.to_frame("is_thin").reset_index()
    return times.assign(date=times["timestamp"].dt.normalize())


def without_control_characters(text: str) -> str:
    """`text` as Power Query's Text.Clean and Text.Trim leave it."""
    return "".join(char for char in text if unicodedata.category(char) != "Cc").strip()


def history_days(model: Model) -> float:
    """The value of the parameter HistoryDays. Raises SourceError."""
    text = model.parameter("HistoryDays")
    try:
        return float(text)
    except ValueError:
        raise SourceError(
            f"{MODEL_DIR / 'expressions.tmdl'}: HistoryDays is {text!r}: set it to a number of days, or 0 for all"
        ) from None


def columns_to_read(model: Model) -> list[str]:
    """The columns of the database that the model has, and those that make the label of a coin."""
    return [*(column["sourceColumn"] for column in model.tables["crypto_prices"]["columns"]), "symbol", "name"]


# ---------------------------------------------------------------------------------------------------- the data model

# What pbix-mcp writes otherwise than Power BI Desktop, found by comparing its output with 25 files that Desktop made.
CORRECTIONS = (
    # Desktop has 19 (the explicit type counts) in 4,120 of 4,120 columns with data; the library repeats the type.
    "UPDATE [Column] SET InferredDataType = 19 WHERE Type = 1",
    # Desktop's dates are in dictionaries of real numbers (8); the library calls them dictionaries of dates (9).
    "UPDATE DictionaryStorage SET DataType = 8 WHERE DataType = 9",
    # Desktop has 0 where there is no linguistic schema; the library leaves NULL.
    "UPDATE Culture SET LinguisticMetadataID = 0 WHERE LinguisticMetadataID IS NULL",
)
# The numbers that the metadata has for what TMDL has words for.
OBJECT_TYPES = {"model": 1, "table": 3, "column": 4, "measure": 8, "expression": 41}
SUMMARIZE_BY = {"default": 1, "none": 2, "sum": 3, "min": 4, "max": 5, "count": 6, "average": 7, "distinctCount": 8}


def build_parts(model: Model, tables: dict[str, pd.DataFrame]) -> dict[str, bytes]:
    """The parts of a .pbix with `tables` inside; the report is not among them."""
    from pbix_mcp.builder import PBIXBuilder
    from pbix_mcp.formats.abf_rebuild import rebuild_abf_with_modified_sqlite
    from pbix_mcp.formats.datamodel_roundtrip import compress_datamodel, decompress_datamodel

    builder = PBIXBuilder(NAME)
    for name, table in model.tables.items():
        columns = [{"name": column["name"], "data_type": column["dataType"]} for column in table["columns"]]
        rows = rows_of(table, tables)
        # With a source the library writes a short query, which is replaced; without one it writes all rows into it.
        builder.add_table(name, columns, rows=to_records(rows), source_db={"type": "mysql"})
        for measure in table.get("measures", []):
            builder.add_measure(name, measure["name"], measure["expression"], data_type=measure_type(measure))
    for relationship in model.tmsl["model"]["relationships"]:
        ends = (relationship[key] for key in ("fromTable", "fromColumn", "toTable", "toColumn"))
        builder.add_relationship(*ends, auto_orient=False)
        check_key(relationship, tables)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            archive = zipfile.ZipFile(io.BytesIO(builder.build()))
        except ValueError as error:  # such as texts in a column of numbers
            raise SourceError(f"{MODEL_DIR}: the rows do not fit the columns of the model: {error}") from error
    for warning in caught:  # such as ids that Power BI takes for one; for names it does no harm, as labels have the id
        if "Table 'Coin' column 'name'" not in str(warning.message):
            log.warning("%s", warning.message)
    parts = {part: archive.read(part) for part in ("DiagramLayout", "Settings", "Metadata", "DataModel")}
    backup = decompress_datamodel(parts["DataModel"])
    backup = rebuild_abf_with_modified_sqlite(backup, lambda metadata: write_metadata(metadata, model))
    parts["DataModel"] = compress_datamodel(backup, original_dm=parts["DataModel"])
    return parts


def rows_of(table: Document, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows of a table of the model, under its columns' names."""
    names = {column["sourceColumn"]: column["name"] for column in table["columns"]}
    rows = tables.get(table["name"])
    for column in names:
        if rows is None or column not in rows:
            raise SourceError(
                f"{MODEL_DIR / 'tables' / table['name']}.tmdl: embedded_tables() in build_dashboard.py makes no column"
                f" {column} for this table"
            )
    return rows[[*names]].rename(columns=names)


def check_key(relationship: Document, tables: dict[str, pd.DataFrame]) -> None:
    """Raise SourceError where the column that a relationship leads to has a value twice: Power BI would not load it."""
    keys = tables[relationship["toTable"]][relationship["toColumn"]].astype(str).str.lower()
    if keys.duplicated().any():
        raise SourceError(
            f"{MODEL_DIR / 'relationships.tmdl'}: {relationship['toTable']}.{relationship['toColumn']} has"
            f" {keys[keys.duplicated()].iloc[0]} twice: a relationship leads from many rows to one"
        )


def to_records(rows: pd.DataFrame) -> list[dict[str, object]]:
    """Rows as the library takes them: None for NULL, and Python's own types."""
    return rows.astype("object").where(rows.notna(), None).to_dict("records")


def measure_type(measure: Document) -> str:
    """What a measure gives, as its format tells: every measure has one but those that give text."""
    pattern = measure.get("formatString")
    is_time = re.search("Date|Time|[ymdhns]{2}", pattern or "") and not re.search("[0#]", pattern or "")
    return "String" if pattern is None else "DateTime" if is_time else "Double"


class Metadata:
    """The model's own database inside a .pbix: rows for its tables, columns, measures, by the numbers of their IDs."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        ((last_id, self.now),) = connection.execute(
            "SELECT VALUE, (SELECT ModifiedTime FROM Model) FROM DBPROPERTIES WHERE NAME = 'MAXID'"
        )
        self.ids = itertools.count(int(last_id) + 1)

    def find(self, table: str, **values: object) -> int:
        condition = " AND ".join(f"{column} = ?" for column in values)
        found = self.connection.execute(f"SELECT ID FROM [{table}] WHERE {condition}", tuple(values.values()))
        ((row_id,),) = found
        return row_id

    def find_column(self, table: str, name: str) -> int:
        return self.find("Column", TableID=self.find("Table", Name=table), ExplicitName=name)

    def update(self, table: str, row_id: int, **values: object) -> None:
        assigned = ", ".join(f"{column} = ?" for column in values)
        self.connection.execute(f"UPDATE [{table}] SET {assigned} WHERE ID = ?", (*values.values(), row_id))

    def insert(self, table: str, **values: object) -> int:
        row_id = next(self.ids)
        self.connection.execute(
            f"INSERT INTO [{table}] (ID, {', '.join(values)}) VALUES (?{', ?' * len(values)})",
            (row_id, *values.values()),
        )
        self.connection.execute("UPDATE DBPROPERTIES SET VALUE = ? WHERE NAME = 'MAXID'", (str(row_id),))
        return row_id

    def annotate(self, kind: str, row_id: int, document: Document) -> None:
        of = {"ObjectID": row_id, "ObjectType": OBJECT_TYPES[kind]}
        for each in document.get("annotations", []):
            self.insert("Annotation", **of, Name=each["name"], Value=each["value"], ModifiedTime=self.now)
        for each in document.get("changedProperties", []):
            self.insert("ChangedProperty", **of, Property=each["property"])


def write_metadata(connection: sqlite3.Connection, model: Model) -> None:
    """Make the model's own database say all that the TMDL says, and say it as Desktop does.

    The library has written the rows of tables, columns, measures and relationships, with where their data lies.
    """
    metadata, tmsl = Metadata(connection), model.tmsl["model"]
    connection.execute("DELETE FROM Annotation")  # the library's: what the TMDL does not say, the .pbix does not say
    write_model(metadata, tmsl)
    for table in tmsl["tables"]:
        write_table(metadata, table)
    for relationship in tmsl["relationships"]:
        ends = {
            f"{end.title()}ColumnID": metadata.find_column(relationship[f"{end}Table"], relationship[f"{end}Column"])
            for end in ("from", "to")
        }
        metadata.update("Relationship", metadata.find("Relationship", **ends), Name=relationship["name"])
    for correction in CORRECTIONS:
        connection.execute(correction)
    connection.commit()


def write_model(metadata: Metadata, tmsl: Document) -> None:
    """What the model says of itself, and the parameters of its queries."""
    model_id = metadata.find("Model", Name="Model")
    metadata.update(
        "Model",
        model_id,
        Culture=tmsl["culture"],
        SourceQueryCulture=tmsl["sourceQueryCulture"],
        DataAccessOptions=json.dumps(tmsl["dataAccessOptions"]),
        DefaultPowerBIDataSourceVersion=2,  # powerBI_V3
        DiscourageImplicitMeasures=tmsl.get("discourageImplicitMeasures", False),
    )
    metadata.annotate("model", model_id, tmsl)
    for expression in tmsl["expressions"]:
        expression_id = metadata.insert(
            "Expression",
            ModelID=model_id,
            Name=expression["name"],
            Kind=0,  # M
            Expression=expression["expression"],
            Description=expression.get("description"),
            LineageTag=expression.get("lineageTag"),
            ModifiedTime=metadata.now,
            # none of these; Desktop has 0 for it, never NULL
            QueryGroupID=0,
            ParameterValuesColumnID=0,
            ExpressionSourceID=0,
        )
        metadata.annotate("expression", expression_id, expression)


def write_table(metadata: Metadata, table: Document) -> None:
    """What a table says of itself, its query, its columns and its measures."""
    table_id = metadata.find("Table", Name=table["name"])
    metadata.update(
        "Table",
        table_id,
        Description=table.get("description"),
        IsHidden=table.get("isHidden", False),
        LineageTag=table.get("lineageTag"),
    )
    metadata.annotate("table", table_id, table)
    (partition,) = table["partitions"]
    query = partition["source"]["expression"]
    metadata.update(
        "Partition", metadata.find("Partition", TableID=table_id), Name=partition["name"], QueryDefinition=query
    )
    ids = {column["name"]: metadata.find_column(table["name"], column["name"]) for column in table["columns"]}
    for column in table["columns"]:
        metadata.update(
            "Column",
            ids[column["name"]],
            **shown_as(column),
            SourceColumn=column["sourceColumn"],
            SummarizeBy=SUMMARIZE_BY[column.get("summarizeBy", "default")],
            SortByColumnID=ids.get(unquote(column.get("sortByColumn", "")), 0),
        )
        metadata.annotate("column", ids[column["name"]], column)
    for measure in table.get("measures", []):
        measure_id = metadata.find("Measure", TableID=table_id, Name=measure["name"])
        metadata.update("Measure", measure_id, **shown_as(measure))
        metadata.annotate("measure", measure_id, measure)


def shown_as(document: Document) -> dict[str, object]:
    """What columns and measures say alike of how they are shown."""
    return {
        "Description": document.get("description"),
        "DisplayFolder": document.get("displayFolder"),
        "FormatString": document.get("formatString"),
        "IsHidden": document.get("isHidden", False),
        "LineageTag": document.get("lineageTag"),
    }


# ---------------------------------------------------------------------------------------------------------- the files

CONTAINER_VERSION = "1.32"  # what Desktop writes for a report in PBIR; 1.33 it writes where TMDL scripts lie beside it
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the same source makes the same .pbit
CONTENT_TYPES = (
    '\ufeff<?xml version="1.0" encoding="utf-8"?>'
    '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="json" ContentType="" />{overrides}</Types>'
)
JSON_PARTS = ("Settings", "Metadata")


def write_container(path: Path, parts: dict[str, bytes]) -> None:
    """Write a .pbix or .pbit."""
    overrides = (
        f'<Override PartName="/{part}" ContentType="{"application/json" if part in JSON_PARTS else ""}" />'
        for part in parts
        if not part.endswith(".json")
    )
    content = {"[Content_Types].xml": CONTENT_TYPES.format(overrides="".join(overrides)).encode()} | parts
    with zipfile.ZipFile(path, "w") as archive:
        for part, data in content.items():
            # Desktop reads the model where it lies in the file: it is stored, all else is deflated
            method = zipfile.ZIP_STORED if part == "DataModel" else zipfile.ZIP_DEFLATED
            archive.writestr(zipfile.ZipInfo(part, ZIP_TIME), data, method)


def utf16(document: Any) -> bytes:
    """A text, or JSON, as most parts hold it: UTF-16 without a byte order mark."""
    text = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False)
    return text.encode("utf-16-le")


def check_measures(dashboard: Dashboard, largest_coin: str, is_sample: bool) -> None:
    """Raise SourceError for a measure that the engine cannot evaluate, over all rows or, if blank there, for one coin.

    The engine gives blank for some mistakes, too, such as the sum of texts. No measure is blank over the sample market;
    over a table it may be.
    """
    measures = dashboard.model.measures
    values = dashboard.values(measures)
    blank = [name for name, value in values.items() if value is None]
    values |= dashboard.values(blank, {"Coin.coin_id": largest_coin})
    for name, value in values.items():
        where, is_number = f"{dashboard.model.places[name]}: measure {name}", isinstance(value, int | float)
        if value is None and is_sample:
            raise SourceError(
                f"{where} is blank over the sample market: name a column of figures, or correct its filters"
            )
        if value is None and not measures[name].get("isHidden"):
            log.warning("measure %s is blank over these rows", name)
        if isinstance(value, list):
            raise SourceError(f"{where} gives a table, not one value")
        if value is not None and is_number != (measure_type(measures[name]) == "Double"):
            raise SourceError(
                f"{where} gives {value!r}, and its formatString is {measures[name].get('formatString')!r}: a text has"
                " none, a number or a time has one"
            )


@contextmanager
def timed(options: argparse.Namespace, what: str) -> Iterator[None]:
    """Say how long something took; on a terminal, count the seconds meanwhile."""
    begun, done = time.monotonic(), threading.Event()

    def count_seconds() -> None:
        while not done.wait(1):
            print(f"\r{what:60}{time.monotonic() - begun:6.0f} s", end="", flush=True)

    is_watched = not options.quiet and sys.stdout is not None and sys.stdout.isatty()
    counter = threading.Thread(target=count_seconds, daemon=True)
    if is_watched:
        counter.start()
    try:
        yield
    finally:
        done.set()
        if is_watched:
            counter.join()
            print("\r", end="")
    say(options, f"{what:60}{time.monotonic() - begun:6.1f} s")


def build(options: argparse.Namespace, model: Model, report: Report, tables: dict[str, pd.DataFrame]) -> None:
    """Write the built files to the folder `options.out`: all of them, or none where one fails. `tables` is emptied."""
    from draw_preview import draw_page

    largest_coin = tables["Coin"]["coin_id"].iloc[0]
    with tempfile.TemporaryDirectory(prefix=".build-", dir=options.out) as folder:
        dashboard_file, template_file = (Path(folder, f"{NAME}.{suffix}") for suffix in ("pbix", "pbit"))
        with timed(options, "encoded the data model"):
            parts = build_parts(model, tables)
            tables.clear()  # the engine reads them from the file: once in memory is enough
            data_model = parts.pop("DataModel")
            common = {"Version": utf16(CONTAINER_VERSION)} | parts | report.parts
            write_container(dashboard_file, common | {"DataModel": data_model})
            write_container(template_file, common | {"DataModelSchema": utf16(model.tmsl)})
        built = [dashboard_file, template_file]
        with Dashboard(dashboard_file, model) as dashboard:
            with timed(options, f"evaluated {len(model.measures)} measures"):
                check_measures(dashboard, largest_coin, is_sample=not options.from_mysql)
            for page, name in zip(report.pages, picture_names(report), strict=True):
                built.append(Path(folder, name))
                with timed(options, f"drew {page.title}"):
                    draw_page(dashboard, page, report.theme).savefig(built[-1], metadata={"Software": None})
        for target in (options.out / path.name for path in built):
            if target.exists():  # one that another program keeps open, or a folder: found before the first is replaced
                target.open("r+b").close()
        for path in built:
            size = path.stat().st_size
            path.replace(options.out / path.name)
            say(options, f"wrote {options.out / path.name} ({size / 1e6:,.2f} MB)")


def picture_names(report: Report) -> list[str]:
    """A file name for the picture of each page."""
    slugs = [re.sub(r"[^a-z0-9]+", "-", page.title.lower()).strip("-") for page in report.pages]
    return [
        f"preview-{slug}{f'-{place}' if slugs.count(slug) > 1 else ''}.png" for place, slug in enumerate(slugs, start=1)
    ]


def run(settings: Settings, options: argparse.Namespace) -> None:
    """Read the source and the rows, and build the files. Raises ConfigError when one cannot be written."""
    with timed(options, "read the source"):
        model, report = read_source(MODEL_DIR, REPORT_DIR)
        days = history_days(model)
    with timed(options, "read the rows"):
        if options.from_mysql:
            tables = embedded_tables(read_mysql_rows(settings, columns_to_read(model), days))
        else:
            tables = embedded_tables(read_sample_rows())
    times = tables["crypto_prices"]["timestamp"]
    say(options, f"{len(times):,} rows; times: {times.nunique():,}")
    if options.dry_run:
        say(options, f"would be written to {options.out} (dry run)")
        return
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        gc.disable()  # millions of small objects without a cycle: to look through them takes a third of the time
        build(options, model, report, tables)
    except OSError as error:
        raise ConfigError(
            f"cannot write {error.filename or options.out} ({error.strerror}): free disk space, close what has the"
            " file open, or name another folder by --out"
        ) from error
    finally:
        gc.enable()


def main(argv: list[str] | None = None) -> int:
    """Command line in, exit code out."""
    parser = make_parser("build_dashboard.py", __doc__)
    parser.add_argument("--from-mysql", action="store_true", help="put your own table inside, not the sample market")
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=SOURCE, help="write the built files there")
    return run_script(parser, argv, run, "powerbi/requirements.txt")


if __name__ == "__main__":
    end_process(main())
