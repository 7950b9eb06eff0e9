"""Draw what the dashboard shows: every visual at its place, with the figures that the measures in a .pbix give.

This is not Power BI: fonts, spacing and axes differ from its own. It serves to see the dashboard without Power BI, and
to find what overlaps, is cut or stays blank.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

from segment_and_load import TIERS

if TYPE_CHECKING:
    from build_dashboard import Page
    from matplotlib.text import Text

DPI = 100
POINT = 96 / DPI * 0.88  # a report has 96 pixels to the inch; matplotlib's font is as much wider than Segoe UI
FOOTER = 28  # pixels below the page
CREDIT = "Drawn by build_dashboard.py from the figures in the .pbix. Power BI's own rendering differs."
UNITS = ((1e12, "T"), (1e9, "bn"), (1e6, "M"), (1e3, "K"))  # as Power BI abbreviates
MOST_GROUPS = 1_000_000
MOST_COINS = 12  # that a table has room for
INK, MUTED, LINE, GRID, HEAD, PAPER = "#172033", "#4B5768", "#D9DFE8", "#E6EAF0", "#EEF2F8", "#FFFFFF"
FONT = get_font(findfont("DejaVu Sans"))
BLANK = "(Blank)"  # as Power BI calls what has no value
PADDING, TITLE_HEIGHT, CELL = 14, 54, 6

Row = dict[str, Any]  # of what a visual shows, by the name of the column or measure


# ------------------------------------------------------------------------------------------ the figures of a dashboard


class Field(NamedTuple):
    """A column or measure that a visual shows."""

    table: str
    name: str
    is_measure: bool
    title: str


class Dashboard:
    """A .pbix, asked as its visuals ask it."""

    def __init__(self, path: Path, model: dict[str, Any]) -> None:
        from pbix_mcp import server

        logging.getLogger("pbix_mcp").setLevel(logging.ERROR)  # it warns that many rows are slow
        self.tools = server
        self.path = path
        self.alias = f"{path.stem}-{id(self)}"  # the library knows an open file by it
        self.formats = {
            measure["name"]: measure.get("formatString", "")
            for table in model["model"]["tables"]
            for measure in table.get("measures", [])
        }

    def __enter__(self) -> Dashboard:
        self.ask("open")
        return self

    def __exit__(self, *_: object) -> None:
        self.ask("close", force=True)

    def ask(self, tool: str, *arguments: object, **options: object) -> Any:
        """The answer of one of the library's tools. RuntimeError when it fails."""
        target = (str(self.path), self.alias) if tool == "open" else (self.alias, *arguments)
        answer = json.loads(getattr(self.tools, f"pbix_{tool}")(*target, **options))
        if not answer["success"]:
            raise RuntimeError(answer["message"])
        return answer

    def values(self, measures: Iterable[str], group: Row | None = None) -> Row:
        """Measures over everything, or for one `group`: columns, as table.name, with their values."""
        context = {column: [value] for column, value in (group or {}).items()}
        answer = self.ask(
            "evaluate_dax",
            ",".join(measures),
            filter_context=json.dumps(context) if group else "",
            group_by=json.dumps(list(context)) if group else "",
        )
        return {result["name"]: result.get("value") for result in answer["results"]}

    def groups(
        self, columns: Iterable[Field], measures: Iterable[str], where: dict[str, list] | None = None
    ) -> list[Row]:
        """Columns and measures of each group that has one; `where` lists the values that columns may have."""
        measures = list(measures)
        answer = self.ask(
            "evaluate_dax_grouped",
            ",".join(measures),
            ",".join(f"{column.table}.{column.name}" for column in columns),
            filter_context=json.dumps(where or {}),
            max_groups=MOST_GROUPS,
        )
        rows = [group["key"] | group["values"] for group in answer["data"]["groups"]]
        return [row for row in rows if any(row[measure] is not None for measure in measures)]

    def formatted(self, field: Field, value: Any) -> str:
        """A value as the format of its measure writes it."""
        return format_figure(value, self.formats[field.name]) if field.is_measure else str(value)


def format_figure(value: Any, pattern: str) -> str:
    r"""`value` as a format string such as \$#,0.00## or +0.00%;-0.00%;0.00% writes it; blank is nothing."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    sections = pattern.split(";")
    section = sections[0 if value > 0 or len(sections) == 1 else 1 if value < 0 else 2]
    before, digits, after = re.fullmatch(r"([^#0]*)([#,0.]+)(.*)", section.replace("\\", "")).groups()
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


def fields(visual: dict[str, Any], role: str) -> list[Field]:
    """What a visual shows in one of its roles."""
    found = []
    for projection in visual["visual"]["query"]["queryState"].get(role, {}).get("projections", []):
        ((kind, field),) = projection["field"].items()
        title = projection.get("displayName", field["Property"])
        found.append(Field(field["Expression"]["SourceRef"]["Entity"], field["Property"], kind == "Measure", title))
    return found


def rank_filter(visual: dict[str, Any]) -> tuple[str, float, float]:
    """The measure that a visual is filtered by, and its bounds."""
    (each,) = visual["filterConfig"]["filters"]
    both = each["filter"]["Where"][0]["Condition"]["And"]
    low, high = (float(both[side]["Comparison"]["Right"]["Literal"]["Value"][:-1]) for side in ("Left", "Right"))
    return each["field"]["Measure"]["Property"], low, high


def ranked_rows(
    dashboard: Dashboard, visual: dict[str, Any], label: Field, measures: list[str], sort: str
) -> list[Row]:
    """The coins that pass the visual's filter, with `measures`, by the measure `sort`; - before it turns the order.

    They come in the order of their ranks, so the first that does not pass ends the list, and ties beyond the room there
    is are left out: the ranks of all of a thousand coins would take the DAX engine a minute.
    """
    order = sort.removeprefix("-")
    rank, low, high = rank_filter(visual)
    shown = []
    for row in sorted(dashboard.groups([label], [order]), key=lambda row: row[order], reverse=order == sort):
        values = dashboard.values([rank, *measures], {f"{label.table}.{label.name}": row[label.name]})
        if values[rank] is None or not low <= values[rank] <= high:
            break
        shown.append(row | values)
        if len(shown) == MOST_COINS:
            break
    return shown


# -------------------------------------------------------------------------------------------------- formatting in PBIR


def literal(value: Any) -> Any:
    """A property's value: text, number, truth or colour."""
    text = value.get("solid", {}).get("color", value)["expr"]["Literal"]["Value"]
    if text.startswith("'"):
        return text[1:-1].replace("''", "'")
    return text == "true" if text in ("true", "false") else float(text[:-1])


def style(visual: dict[str, Any], group: str, name: str, otherwise: Any = None, of: str = "objects") -> Any:
    """The property `name` that a visual has for all of its marks."""
    for entry in visual["visual"].get(of, {}).get(group, []):
        if "selector" not in entry and name in entry["properties"]:
            return literal(entry["properties"][name])
    return otherwise


def column_styles(visual: dict[str, Any], field: Field) -> dict[str, Any]:
    """The properties that a table has for one of its columns."""
    entries = [entry for group in visual["visual"]["objects"].values() for entry in group]
    found: dict[str, Any] = {}
    for entry in entries:
        if entry.get("selector", {}).get("metadata") == f"{field.table}.{field.name}":
            found |= entry["properties"]
    return found


def tier_colours(visual: dict[str, Any]) -> dict[str, str]:
    """The colour of each tier."""
    return {
        entry["selector"]["data"][0]["scopeId"]["Comparison"]["Right"]["Literal"]["Value"][1:-1]: literal(
            entry["properties"]["fill"]
        )
        for entry in visual["visual"]["objects"]["dataPoint"]
    }


# ---------------------------------------------------------------------------------------------------------- the canvas


class Frame(NamedTuple):
    """A rectangle of the page in pixels; y runs down."""

    x: float
    y: float
    width: float
    height: float

    def inner(self, left: float = 0, top: float = 0, right: float = 0, bottom: float = 0) -> Frame:
        return Frame(self.x + left, self.y + top, self.width - left - right, self.height - top - bottom)


class Canvas:
    """A page of the report, drawn upon in its own pixels."""

    def __init__(self, width: float, height: float, theme: dict[str, Any], background: str) -> None:
        self.width, self.height = width, height + FOOTER
        self.palette = theme["dataColors"]
        self.figure = Figure(figsize=(width / DPI, self.height / DPI), dpi=DPI, facecolor=background)
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(self.height, 0))
        self.axes.axis("off")

    def text(self, x: float, y: float, text: str, points: float = 10, colour: str = INK, **options: Any) -> Text:
        text = "".join(char for char in text if FONT.get_char_index(ord(char)))  # it has not every script
        options = {"va": "center", "parse_math": False} | options
        return self.axes.text(x, y, text, fontsize=points * POINT, color=colour, **options)

    def width_of(self, text: str, **options: Any) -> float:
        """How many pixels a text takes."""
        drawn = self.text(0, 0, text, **options)
        width = drawn.get_window_extent().width
        drawn.remove()
        return width

    def cut(self, x: float, y: float, text: str, room: float, **options: Any) -> None:
        """A text that ends with an ellipsis where there is no room for it."""
        drawn = self.text(x, y, text, **options)
        while drawn.get_window_extent().width > room and len(text) > 1:
            text = text[:-1]
            drawn.set_text(f"{text.rstrip()}…")

    def wrap(self, x: float, y: float, text: str, room: float, **options: Any) -> None:
        """A text in two lines where it does not fit into one."""
        first, second = text, ""
        while self.width_of(first) > room and " " in first:
            first, _, word = first.rpartition(" ")
            second = f"{word} {second}".rstrip()
        for line, part in enumerate([first, second] if second else [first]):
            self.cut(x, y + (14 * line - 7 if second else 0), part, room, **options)

    def box(self, frame: Frame, colour: str, edge: str = "none", radius: float = 0) -> None:
        if radius:
            shape = FancyBboxPatch(frame[:2], *frame[2:], boxstyle=f"round,pad=0,rounding_size={radius}")
        else:
            shape = Rectangle(frame[:2], *frame[2:])
        shape.set(facecolor=colour, edgecolor=edge, linewidth=0.8)
        self.axes.add_patch(shape)

    def chart(self, frame: Frame) -> Axes:
        """Axes for a chart whose plot fills `frame`."""
        bounds = frame.x, self.height - frame.y - frame.height, frame.width, frame.height
        width, height = self.width, self.height
        axes = self.figure.add_axes((bounds[0] / width, bounds[1] / height, bounds[2] / width, bounds[3] / height))
        axes.set_facecolor("none")
        axes.tick_params(length=0, labelsize=10 * POINT, labelcolor=MUTED)
        axes.spines[:].set_visible(False)
        return axes

    def legend(self, frame: Frame, colours: dict[str, str]) -> None:
        """Names with their colours, in a line along the top of `frame`."""
        x = frame.x
        for name, colour in colours.items():
            self.axes.plot([x + 5], [frame.y + 8], marker="o", markersize=7, color=colour)
            drawn = self.text(x + 15, frame.y + 8, name, colour=MUTED)
            x += drawn.get_window_extent().width + 34


def draw_container(canvas: Canvas, visual: dict[str, Any]) -> Frame:
    """Draw a visual's background, border and titles; what is left of it for its figures is returned."""
    position = visual["position"]
    frame = Frame(position["x"], position["y"], position["width"], position["height"])
    background = style(visual, "background", "color", PAPER, of="visualContainerObjects")
    if not style(visual, "border", "show", True, of="visualContainerObjects"):
        canvas.box(frame, background)
        return frame
    canvas.box(frame, background, edge=LINE, radius=8)
    for name, y, options in (("title", 20, {"points": 12, "weight": "bold"}), ("subTitle", 40, {"colour": MUTED})):
        text = style(visual, name, "text", "", of="visualContainerObjects")
        canvas.cut(frame.x + PADDING, frame.y + y, text, frame.width - 2 * PADDING, **options)
    return frame.inner(PADDING, TITLE_HEIGHT, PADDING, PADDING)


# --------------------------------------------------------------------------------------------------------- the visuals


def draw_textbox(canvas: Canvas, frame: Frame, visual: dict[str, Any], _: Dashboard) -> None:
    run = visual["visual"]["objects"]["general"][0]["properties"]["paragraphs"][0]["textRuns"][0]
    look = run["textStyle"]
    points = float(look["fontSize"].removesuffix("pt"))
    weight = look["fontWeight"]
    canvas.text(frame.x + PADDING, frame.y + frame.height / 2, run["value"], points, look["color"], weight=weight)


def draw_card(canvas: Canvas, frame: Frame, visual: dict[str, Any], dashboard: Dashboard) -> None:
    (field,) = fields(visual, "Values")
    value = dashboard.values([field.name])[field.name]
    if value is None:
        text = BLANK
    elif style(visual, "labels", "labelDisplayUnits") == 0:  # automatic
        text = abbreviate(value, int(style(visual, "labels", "labelPrecision")))
    else:
        text = dashboard.formatted(field, value)
    points, colour = style(visual, "labels", "fontSize"), style(visual, "labels", "color")
    canvas.text(frame.x + frame.width / 2, frame.y + frame.height / 2, text, points, colour, ha="center")


def by_tier(dashboard: Dashboard, category: Field, measures: list[str]) -> dict[str, Row]:
    """Measures by tier, in the order of the tiers; rows without one of them come last."""
    rows = {row[category.name]: row for row in dashboard.groups([category], measures)}
    named = {tier: rows[tier] for tier in TIERS if tier in rows}
    return named | ({BLANK: rows[None]} if None in rows else {})


def draw_bars(canvas: Canvas, frame: Frame, visual: dict[str, Any], dashboard: Dashboard) -> None:
    (category,), (field,) = fields(visual, "Category"), fields(visual, "Y")
    fill = visual["visual"]["objects"]["dataPoint"][0]["properties"]["fill"]
    by_measure = fill["solid"]["color"]["expr"].get("Measure", {}).get("Property")
    rows = by_tier(dashboard, category, [field.name, *([by_measure] if by_measure else [])])
    tiers = [tier for tier, row in rows.items() if row[field.name] is not None]
    if not tiers:
        return
    values = [rows[tier][field.name] for tier in tiers]
    colours = [rows[tier][by_measure] if by_measure else literal(fill) for tier in tiers]
    axes = canvas.chart(frame.inner(left=112))
    bars = axes.barh(tiers, values, color=colours, height=0.62)
    labels = [dashboard.formatted(field, value) for value in values]
    axes.bar_label(bars, labels, padding=4, fontsize=10 * POINT, color=INK, parse_math=False)
    # room for the labels beyond the longest bars, by side
    room = {False: 0.0, True: 0.0}
    for value, label in zip(values, labels, strict=True):
        room[value < 0] = max(room[value < 0], canvas.width_of(label) + 10)
    low, high = min([0, *values]), max([0, *values])
    scale = (high - low or 1) / (frame.width - 112 - sum(room.values()))
    axes.set_xlim(low - room[True] * scale, high + room[False] * scale)
    axes.invert_yaxis()
    axes.axvline(0, color=LINE, linewidth=1)
    axes.set_xticks([])


def draw_donut(canvas: Canvas, frame: Frame, visual: dict[str, Any], dashboard: Dashboard) -> None:
    (category,), (field,) = fields(visual, "Category"), fields(visual, "Y")
    shares = {tier: row[field.name] for tier, row in by_tier(dashboard, category, [field.name]).items()}
    shares = {tier: share for tier, share in shares.items() if share > 0}
    if not shares:
        return
    colours = tier_colours(visual) | {BLANK: LINE}
    decimals = int(style(visual, "labels", "percentageLabelPrecision", 1))
    ring = 1 - style(visual, "slices", "innerRadiusRatio", 60) / 100
    axes = canvas.chart(frame.inner(bottom=66))
    axes.pie(
        shares.values(),
        colors=[colours[tier] for tier in shares],
        startangle=90,
        counterclock=False,
        wedgeprops={"width": ring, "edgecolor": PAPER},
    )
    for position, (tier, share) in enumerate(shares.items()):
        x = frame.x + position % 2 * frame.width / 2
        y = frame.y + frame.height - 46 + position // 2 * 24
        text = f"{tier}  {share / sum(shares.values()):.{decimals}%}"
        canvas.legend(Frame(x, y, 0, 0), {text: colours[tier]})


def draw_table(canvas: Canvas, frame: Frame, visual: dict[str, Any], dashboard: Dashboard) -> None:
    columns = fields(visual, "Values")
    (label,) = (column for column in columns if not column.is_measure)
    (sort,) = visual["visual"]["query"]["sortDefinition"]["sort"]
    order = ("-" if sort["direction"] == "Ascending" else "") + sort["field"]["Measure"]["Property"]
    styles = {column: column_styles(visual, column) for column in columns}
    inputs = [
        each["fontColor"]["solid"]["color"]["expr"]["Measure"]["Property"]
        for each in styles.values()
        if "fontColor" in each
    ]
    measures = [column.name for column in columns if column.is_measure]
    rows = ranked_rows(dashboard, visual, label, measures + inputs, order)

    cells = [[dashboard.formatted(column, row[column.name]) for column in columns] for row in rows]
    widths = [
        max(canvas.width_of(column.title, weight="bold"), *(canvas.width_of(text) for text in texts), 0) + 2 * CELL
        for column, *texts in zip(columns, *cells, strict=True)
    ]
    at_label = columns.index(label)
    widths[at_label] += frame.width - sum(widths)
    lefts = [frame.x + sum(widths[:position]) for position in range(len(widths))]
    height = 20 + 2 * style(visual, "grid", "rowPadding", 3)
    write = canvas.wrap if style(visual, "values", "wordWrap") else canvas.cut
    canvas.box(Frame(frame.x, frame.y, frame.width, height), HEAD)
    for position, column in enumerate(columns):
        look, left, width = styles[column], lefts[position], widths[position]
        alignment = (
            literal(look["alignment"]).lower() if "alignment" in look else "left" if column == label else "right"
        )
        figures = [row[column.name] for row in rows]
        for line, text in enumerate([column.title, *(cell[position] for cell in cells)]):
            y = frame.y + line * height
            options: dict[str, Any] = {"ha": alignment, "weight": "normal" if line else "bold"}
            if line:
                row, figure = rows[line - 1], figures[line - 1]
                if "backColor" in look:
                    stops = look["backColor"]["solid"]["color"]["expr"]["FillRule"]["FillRule"]["linearGradient2"]
                    colour = gradient(stops, figures, figure)
                    canvas.box(Frame(left + 2, y + 1, width - 4, height - 2), colour)
                if "dataBars" in look and figure and figure > 0:
                    bar = (width - 4) * figure / max(figures)
                    canvas.box(Frame(left + 2, y + 3, bar, height - 6), literal(look["dataBars"]["positiveColor"]))
                if "fontColor" in look:
                    options["colour"] = row[look["fontColor"]["solid"]["color"]["expr"]["Measure"]["Property"]]
            x = {"left": left + CELL, "center": left + width / 2, "right": left + width - CELL}[alignment]
            write(x, y + height / 2, text, width - 2 * CELL + 1, **options)
    for line in range(1, len(rows) + 1):
        y = frame.y + line * height
        canvas.axes.plot([frame.x, frame.x + frame.width], [y, y], color=GRID, linewidth=0.8)


def gradient(stops: dict[str, Any], figures: list[float | None], figure: float | None) -> tuple[float, ...]:
    """The colour of a figure between the smallest and the largest; blank counts as zero."""
    known = [each or 0 for each in figures]
    low, high = min(known), max(known)
    colours = [stops[end]["color"]["Literal"]["Value"].strip("'") for end in ("min", "max")]
    return LinearSegmentedColormap.from_list("", colours)(((figure or 0) - low) / ((high - low) or 1))


def draw_lines(canvas: Canvas, frame: Frame, visual: dict[str, Any], dashboard: Dashboard) -> None:
    (time,), (field,) = fields(visual, "Category"), fields(visual, "Y")
    (series,) = fields(visual, "Series") or [None]
    lines: dict[str, list[Row]] = {}
    if series is None:
        colours = {"": style(visual, "dataPoint", "fill")}
        lines[""] = dashboard.groups([time], [field.name])
    elif series.table == "Tier":
        colours = tier_colours(visual)
        for tier in TIERS:
            lines[tier] = dashboard.groups([time], [field.name], {f"{series.table}.{series.name}": [tier]})
    else:
        column = f"{series.table}.{series.name}"
        colours = {}
        coins = dashboard.groups([series], ["Total Market Cap"])
        for coin in sorted(coins, key=lambda row: row["Total Market Cap"], reverse=True):
            name = coin[series.name]
            # none is picked, so the largest are drawn: the first that is not ends the list
            if (
                len(colours) == len(canvas.palette)
                or dashboard.values([field.name], {column: name})[field.name] is None
            ):
                break
            colours[name] = canvas.palette[len(colours)]
            lines[name] = dashboard.groups([time], [field.name], {column: [name]})
    is_logarithmic = style(visual, "valueAxis", "logAxisScale", False)
    if is_logarithmic:  # which has no place for zero
        lines = {name: [row for row in rows if row[field.name] > 0] for name, rows in lines.items()}
    lines = {name: rows for name, rows in lines.items() if rows}
    if series:
        canvas.legend(frame, {name: colours[name] for name in lines})
    axes = canvas.chart(frame.inner(left=64, top=30 if series else 4, bottom=24))
    for name, rows in lines.items():
        points = sorted((datetime.fromisoformat(row[time.name]), row[field.name]) for row in rows)
        marker = "o" if len(points) == 1 else ""
        axes.plot(*zip(*points, strict=True), color=colours[name], linewidth=2.4, marker=marker)
    if axes.lines and all(len(line.get_xdata()) == 1 for line in axes.lines):
        axes.set_xlim(points[0][0] - timedelta(hours=12), points[0][0] + timedelta(hours=12))
    axes.grid(axis="y", color=GRID)
    locator = AutoDateLocator(maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.xaxis.get_offset_text().set(color=MUTED, fontsize=10 * POINT)
    if is_logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="minor", length=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: abbreviate(value)))


def draw_slicer(canvas: Canvas, frame: Frame, visual: dict[str, Any], dashboard: Dashboard) -> None:
    (field,) = fields(visual, "Values")
    names = sorted(row[field.name] for row in dashboard.groups([field], ["Price (trend)"]))
    canvas.box(Frame(frame.x, frame.y, frame.width, 28), PAPER, edge=LINE, radius=4)
    canvas.text(frame.x + 12, frame.y + 14, "Search", colour=MUTED)
    for line, name in enumerate(names[: int((frame.height - 36) // 25)]):
        y = frame.y + 50 + line * 25
        canvas.box(Frame(frame.x + 2, y - 6, 12, 12), PAPER, edge=MUTED)
        canvas.cut(frame.x + 24, y, name, frame.width - 40)


def draw_unknown(canvas: Canvas, frame: Frame, visual: dict[str, Any], _: Dashboard) -> None:
    kind = visual["visual"]["visualType"]
    canvas.text(frame.x + frame.width / 2, frame.y + frame.height / 2, f"{kind}: see it in Power BI", ha="center")


DRAW = {
    "textbox": draw_textbox,
    "card": draw_card,
    "clusteredBarChart": draw_bars,
    "donutChart": draw_donut,
    "tableEx": draw_table,
    "lineChart": draw_lines,
    "slicer": draw_slicer,
}


def draw_previews(
    path: Path, model: dict[str, Any], pages: list[Page], theme: dict[str, Any], out: Path
) -> Iterator[Path]:
    """Draw each page of the .pbix at `path` into `out`; each picture's path comes when it is written."""
    with Dashboard(path, model) as dashboard:
        for page in pages:
            picture = out / f"preview-{page.definition['displayName'].lower().replace(' ', '-')}.png"
            draw_page(dashboard, page, theme).savefig(picture, metadata={"Software": None})
            yield picture


def draw_page(dashboard: Dashboard, page: Page, theme: dict[str, Any]) -> Figure:
    """The picture of one page."""
    definition, visuals = page
    background = literal(definition["objects"]["background"][0]["properties"]["color"])
    canvas = Canvas(definition["width"], definition["height"], theme, background)
    for visual in visuals:
        draw = DRAW.get(visual["visual"]["visualType"], draw_unknown)
        draw(canvas, draw_container(canvas, visual), visual, dashboard)
    canvas.text(24, definition["height"] + FOOTER / 2, CREDIT, colour=MUTED)
    return canvas.figure
