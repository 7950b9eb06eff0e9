"""Ask a .pbix as its visuals ask it: measures by the values of columns, written as their formats say.

The file is opened and its DAX evaluated by pbix-mcp, an engine independent of Power BI.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from report_source import Field, Model, SourceError

MOST_GROUPS = 1_000_000
UNITS = ((1e12, "T"), (1e9, "bn"), (1e6, "M"), (1e3, "K"))  # as Power BI abbreviates

Row = dict[str, Any]  # what a visual shows of one group, by the name of the column or measure


class Dashboard:
    """An open .pbix. Its answers are kept, because several visuals ask the same."""

    def __init__(self, path: Path, model: Model) -> None:
        from pbix_mcp import server

        logging.getLogger("pbix_mcp").setLevel(logging.ERROR)  # it warns that many rows are slow
        self.tools = server
        self.path = path
        self.alias = f"{path.stem}-{id(self)}"  # the library knows an open file by it
        self.model = model
        self.known_values: dict[str, Row] = {}  # by group
        self.known_groups: dict[str, tuple[set[str], dict[str, Row]]] = {}  # measures and rows, by columns and filters

    def __enter__(self) -> Dashboard:
        self.call("open")
        return self

    def __exit__(self, *_: object) -> None:
        self.call("close", force=True)

    def call(self, tool: str, *arguments: object, **options: object) -> Any:
        """The answer of one of the library's tools. Raises SourceError when it fails."""
        target = (str(self.path), self.alias) if tool == "open" else (self.alias, *arguments)
        answer = json.loads(getattr(self.tools, f"pbix_{tool}")(*target, **options))
        if not answer["success"]:
            raise SourceError(f"{self.path.name} cannot be asked: {answer['message'].splitlines()[0]}")
        return answer

    def values(self, measures: Iterable[str], group: Row | None = None) -> Row:
        """Measures over everything, or for one `group`: columns, as table.name, with their values.

        Raises SourceError for a measure that cannot be evaluated.
        """
        measures = list(measures)
        known = self.known_values.setdefault(json.dumps(group), {})
        if missing := [measure for measure in measures if measure not in known]:
            context = {column: [value] for column, value in (group or {}).items()}
            answer = self.call(
                "evaluate_dax",
                ",".join(missing),
                filter_context=json.dumps(context) if group else "",
                group_by=json.dumps(list(context)) if group else "",
            )
            for result in answer["results"]:
                if result["status"] not in ("ok", "blank"):
                    name, problem = result["name"], result["error_message"].removeprefix("[DAX_EVAL_FAILED] ")
                    raise SourceError(f"{self.model.places[name]}: measure {name}: {problem}")
                known[result["name"]] = result.get("value")
        return {measure: known[measure] for measure in measures}

    def groups(
        self, columns: Iterable[Field], measures: Iterable[str], where: dict[str, list] | None = None
    ) -> list[Row]:
        """Columns and measures of each group that has one; `where` lists the values of other columns."""
        columns, measures, where = list(columns), list(measures), where or {}
        *first, last = columns
        if first and last.table != first[0].table:
            # the library groups by the columns of one table: one value of the other's after the other
            return [
                row | {last.name: value}
                for (value,) in self.rows(last.table, [last.name])
                for row in self.groups(first, measures, where | {last.column: [value]})
            ]
        rows = self.ask_groups(columns, measures, where)
        names = [*(column.name for column in columns), *measures]
        return [
            {name: row[name] for name in names} for row in rows if any(row[measure] is not None for measure in measures)
        ]

    def ask_groups(self, columns: list[Field], measures: list[str], where: dict[str, list]) -> Iterable[Row]:
        """The rows of all groups, with these measures and what else is known of them."""
        by = ",".join(column.column for column in columns)
        known, rows = self.known_groups.setdefault(json.dumps([by, where]), (set(), {}))
        if missing := [measure for measure in measures if measure not in known]:
            answer = self.call(
                "evaluate_dax_grouped",
                ",".join(missing),
                by,
                filter_context=json.dumps(where),
                max_groups=MOST_GROUPS,
            )
            known.update(missing)
            for group in answer["data"]["groups"]:
                rows.setdefault(json.dumps(group["key"]), dict(group["key"])).update(group["values"])
        return rows.values()

    def rows(self, table: str, columns: Iterable[str]) -> list[tuple]:
        """Some columns of a table's rows, each combination once; times as text, as in all answers."""
        content = self.tools._get_dax_context(self.alias)["tables"].get(table, {"columns": [], "rows": []})
        places = [content["columns"].index(column) for column in columns if column in content["columns"]]
        found = dict.fromkeys(tuple(row[place] for place in places) for row in content["rows"])
        return [tuple(each.isoformat() if isinstance(each, datetime) else each for each in row) for row in found]

    def formatted(self, field: Field, value: Any) -> str:
        """A value as the format of its measure writes it."""
        if not field.is_measure:
            return str(value)
        return format_figure(value, self.model.measures[field.name].get("formatString", ""))


NAMED_FORMATS = {
    "Percent": "0.00%",
    "Currency": r"\$#,0.00",
    "Standard": "#,0.00",
    "Fixed": "0.00",
    "General Number": "0.##########",
}


def format_figure(value: Any, pattern: str) -> str:
    r"""`value` as a format string such as \$#,0.00## or +0.00%;-0.00%;0.00% writes it; blank is nothing."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    sections = NAMED_FORMATS.get(pattern, pattern or "0.##########").split(";")
    section = sections[0 if value > 0 or len(sections) == 1 else 1 if value < 0 else 2]
    found = re.fullmatch(r"([^#0]*)([#,0.]+)(.*)", section.replace("\\", ""))
    if found is None:  # a format that is not known here
        return f"{value:g}"
    before, digits, after = found.groups()
    decimals = digits.partition(".")[2]
    text = f"{abs(value) * (100 if '%' in after else 1):,.{len(decimals)}f}"
    for _ in range(decimals.count("#")):
        text = text.removesuffix("0")
    minus = "-" if value < 0 and len(sections) == 1 else ""
    return f"{minus}{before}{text.removesuffix('.')}{after}"


def abbreviate(value: float, decimals: int | None = None) -> str:
    """USD as Power BI abbreviates them, such as $2.97T; without `decimals` with as many as it needs, at most four."""
    unit, letters = next(((unit, letters) for unit, letters in UNITS if abs(value) >= unit), (1, ""))
    number = f"{abs(value) / unit:,.4g}" if decimals is None else f"{abs(value) / unit:,.{decimals}f}"
    return f"{'-' if value < 0 else ''}${number}{letters}"
