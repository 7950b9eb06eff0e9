"""Draw what the dashboard shows: every visual of the PBIR at its place, with the figures that a .pbix gives.

This is not Power BI: fonts, spacing and axes differ from its own. It serves to see the dashboard without Power BI, and
to find what overlaps, is cut or stays blank.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter
from pbix_query import Dashboard, Row, abbreviate
from report_source import Document, Field, Page, Visual, literal, measure_of

if TYPE_CHECKING:
    from matplotlib.text import Text

DPI = 100
POINT = 96 / DPI * 0.88  # a report has 96 pixels to the inch; matplotlib's font is as much wider than Segoe UI
LINE_HEIGHT = 1.8  # pixels of a line of text for each point of its size
FOOTER = 28  # pixels below the page
CREDIT = "Drawn by build_dashboard.py from the figures in the .pbix. Power BI's own rendering differs."
AXIS_POINTS = 10
NAMES_WIDTH = 112  # pixels at the left of bars, for their names
CELL = 6  # pixels at the left and right of a table's texts
FONT = get_font(findfont("DejaVu Sans"))
BLANK = "(Blank)"  # as Power BI calls what has no value


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
    """A page of the report, drawn upon in its own pixels, in the colours of its theme."""

    def __init__(self, page: Page, theme: Document) -> None:
        self.width, self.height = page.definition["width"], page.definition["height"] + FOOTER
        self.palette = theme.get("dataColors", ["#118DFF"])
        self.ink, self.paper = theme.get("foreground", "#252423"), theme.get("background", "#FFFFFF")
        self.muted = theme.get("foregroundNeutralSecondary", "#605E5C")
        background = page.background or self.paper
        self.figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor=background)
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, self.width), ylim=(self.height, 0))
        self.axes.axis("off")

    def text(
        self, x: float, y: float, text: str, points: float = AXIS_POINTS, colour: str = "", **options: Any
    ) -> Text:
        text = "".join(char for char in text if FONT.get_char_index(ord(char)))  # it has not every script
        options = {"va": "center", "parse_math": False} | options
        return self.axes.text(x, y, text, fontsize=points * POINT, color=colour or self.ink, **options)

    def width_of(self, text: str, **options: Any) -> float:
        """How many pixels a text takes."""
        drawn = self.text(0, 0, text, **options)
        width = drawn.get_window_extent().width
        drawn.remove()
        return width

    def cut(self, x: float, y: float, text: str, room: float, **options: Any) -> None:
        """A text that ends with an ellipsis where there is no room for it."""
        drawn = self.text(x, y, text, **options)
        shown = drawn.get_text()
        while drawn.get_window_extent().width > room and len(shown) > 1:
            shown = shown[:-1]
            drawn.set_text(f"{shown.rstrip()}…")

    def wrap(self, x: float, y: float, text: str, room: float, **options: Any) -> None:
        """A text in two lines where it does not fit into one."""
        first, second = text, ""
        while self.width_of(first) > room and " " in first:
            first, _, word = first.rpartition(" ")
            second = f"{word} {second}".rstrip()
        for line, part in enumerate([first, second] if second else [first]):
            self.cut(x, y + (14 * line - 7 if second else 0), part, room, **options)

    def box(self, frame: Frame, colour: Any, edge: str = "none", radius: float = 0) -> None:
        if radius:
            shape = FancyBboxPatch(frame[:2], *frame[2:], boxstyle=f"round,pad=0,rounding_size={radius}")
        else:
            shape = Rectangle(frame[:2], *frame[2:])
        shape.set(facecolor=colour, edgecolor=edge, linewidth=0.8)
        self.axes.add_patch(shape)

    def rule(self, x: float, y: float, width: float, colour: str) -> None:
        """A thin line across."""
        self.axes.plot([x, x + width], [y, y], color=colour, linewidth=0.8)

    def chart(self, frame: Frame) -> Axes:
        """Axes for a chart whose plot fills `frame`."""
        bounds = frame.x, self.height - frame.y - frame.height, frame.width, frame.height
        width, height = self.width, self.height
        axes = self.figure.add_axes((bounds[0] / width, bounds[1] / height, bounds[2] / width, bounds[3] / height))
        axes.set_facecolor("none")
        axes.tick_params(length=0, labelsize=AXIS_POINTS * POINT, labelcolor=self.muted)
        axes.spines[:].set_visible(False)
        return axes

    def legend(self, frame: Frame, colours: dict[str, str]) -> None:
        """Names with their colours, in a line along the top of `frame`."""
        x = frame.x
        for name, colour in colours.items():
            self.axes.plot([x + 5], [frame.y + 8], marker="o", markersize=7, color=colour)
            drawn = self.text(x + 15, frame.y + 8, name, colour=self.muted)
            x += drawn.get_window_extent().width + 34


def draw_container(canvas: Canvas, visual: Visual) -> Frame:
    """Draw a visual's background, border and titles; what is left of it for its figures is returned."""
    position = visual.document["position"]
    frame = Frame(position["x"], position["y"], position["width"], position["height"])
    has_border = visual.container("border", "show", False)
    canvas.box(
        frame,
        visual.container("background", "color", canvas.paper),
        visual.container("border", "color", canvas.muted) if has_border else "none",
        visual.container("border", "radius", 0) if has_border else 0,
    )
    left, top, right, bottom = (visual.container("padding", side, 5) for side in ("left", "top", "right", "bottom"))
    titles = 0
    for group, weight in (("title", "bold"), ("subTitle", "normal")):
        text = visual.container(group, "text", "")
        if not text or not visual.container(group, "show", group == "title"):
            continue
        points, colour = visual.container(group, "fontSize", 12), visual.container(group, "fontColor", canvas.ink)
        y = frame.y + top + titles + LINE_HEIGHT * points / 2
        canvas.cut(
            frame.x + left,
            y,
            text,
            frame.width - left - right,
            points=points,
            colour=colour or canvas.ink,
            weight=weight,
        )
        titles += LINE_HEIGHT * points
    return frame.inner(left, top + titles + (6 if titles else 0), right, bottom)


# ------------------------------------------------------------------------------------------------ what a visual shows


def in_order(dashboard: Dashboard, field: Field) -> list[Any]:
    """The values of a column in the order in which Power BI lists them: that of the column it is sorted by."""
    columns = {column["name"]: column for column in dashboard.model.tables[field.table]["columns"]}
    by = columns[field.name].get("sortByColumn", field.name)
    rows = [row for row in dashboard.rows(field.table, [field.name, by]) if row[0] is not None]
    return [row[0] for row in sorted(rows, key=lambda row: (row[-1] is None, row[-1]))]


def by_category(dashboard: Dashboard, category: Field, measures: list[str]) -> dict[str, Row]:
    """Measures by the values of a column, in its order; rows without a value come last."""
    rows = {row[category.name]: row for row in dashboard.groups([category], measures)}
    named = {value: rows[value] for value in in_order(dashboard, category) if value in rows}
    return named | ({BLANK: rows[None]} if None in rows else {})


def largest_coins(dashboard: Dashboard, field: Field) -> list[str]:
    """The labels of the coins, the largest first, those without a size last."""
    coins = dashboard.rows(field.table, [field.name, "size_rank"])
    return [coin for coin, _ in sorted(coins, key=lambda row: (row[1] is None, row[1], row[0]))]


def sorted_labels(dashboard: Dashboard, visual: Visual, label: Field) -> list[Any]:
    """The values of a table's column in the order of the table, those alone that have a figure in it."""
    order, descending = visual.sort or (label, False)
    if not order.is_measure:
        names = in_order(dashboard, label if order.name == label.name else order)
        return names[::-1] if descending else names
    rows = sorted(dashboard.groups([label], [order.name]), key=lambda row: row[order.name], reverse=descending)
    return [row[label.name] for row in rows]


def passing_rows(dashboard: Dashboard, visual: Visual, label: Field, measures: list[str], room: int) -> list[Row]:
    """The first `room` rows that pass the visual's filter, with `measures`, in the visual's order.

    The rows that pass follow one another, since the visual is sorted by the figure that its filter ranks: the first
    that does not pass after one that does ends them. To rank each of 17,000 coins would take minutes.
    """
    limits = visual.limits
    asked = [*dict.fromkeys([*(limit.measure for limit in limits), *measures])]
    shown: list[Row] = []
    for name in sorted_labels(dashboard, visual, label):
        values = dashboard.values(asked, {label.column: name})
        if all(limit.passes(values[limit.measure]) for limit in limits):
            shown.append({label.name: name} | values)
        elif shown:
            break
        if len(shown) == room:
            break
    return shown


def series_colours(visual: Visual) -> dict[str, str]:
    """The colour of each value of a series or category that the visual gives one."""
    return {
        entry["selector"]["data"][0]["scopeId"]["Comparison"]["Right"]["Literal"]["Value"][1:-1]: literal(
            entry["properties"]["fill"]
        )
        for entry in visual.entries("dataPoint")
        if "data" in entry.get("selector", {})
    }


# --------------------------------------------------------------------------------------------------------- the visuals


def draw_textbox(canvas: Canvas, frame: Frame, visual: Visual, _: Dashboard) -> None:
    run = visual.entries("general")[0]["properties"]["paragraphs"][0]["textRuns"][0]
    look = run.get("textStyle", {})
    points, weight = float(look.get("fontSize", "12pt").removesuffix("pt")), look.get("fontWeight", "normal")
    colour = look.get("color", canvas.ink)
    canvas.text(frame.x + 12, frame.y + frame.height / 2, run["value"], points, colour, weight=weight)


def draw_card(canvas: Canvas, frame: Frame, visual: Visual, dashboard: Dashboard) -> None:
    field = visual.field("Values")
    value = dashboard.values([field.name])[field.name]
    if value is None:
        text = BLANK
    elif visual.style("labels", "labelDisplayUnits") == 0:  # automatic
        text = abbreviate(value, int(visual.style("labels", "labelPrecision")))
    else:
        text = dashboard.formatted(field, value)
    points, colour = visual.style("labels", "fontSize", 26), visual.style("labels", "color", canvas.ink)
    canvas.text(frame.x + frame.width / 2, frame.y + frame.height / 2, text, points, colour, ha="center")


def draw_line_of_text(canvas: Canvas, frame: Frame, visual: Visual, dashboard: Dashboard) -> None:
    """A newer card, as the report has it: one text at the left."""
    field = visual.field("Data")
    text = dashboard.formatted(field, dashboard.values([field.name])[field.name])
    points, colour = visual.style("value", "fontSize"), visual.style("value", "fontColor")
    canvas.text(frame.x + visual.style("padding", "leftMargin"), frame.y + frame.height / 2, text, points, colour)


def draw_bars(canvas: Canvas, frame: Frame, visual: Visual, dashboard: Dashboard) -> None:
    category, field = visual.field("Category"), visual.field("Y")
    fills = [entry["properties"]["fill"] for entry in visual.entries("dataPoint") if "fill" in entry["properties"]]
    by_measure = measure_of(fills[0]) if fills else None
    colour = (literal(fills[0]) if fills else None) or canvas.palette[0]
    rows = by_category(dashboard, category, [field.name, *([by_measure] if by_measure else [])])
    names = [name for name, row in rows.items() if row[field.name] is not None]
    if not names:
        return
    values = [rows[name][field.name] for name in names]
    colours = [rows[name][by_measure] if by_measure else colour for name in names]
    axes = canvas.chart(frame.inner(left=NAMES_WIDTH))
    bars = axes.barh(names, values, color=colours, height=0.62)
    labels = [dashboard.formatted(field, value) for value in values]
    axes.bar_label(bars, labels, padding=4, fontsize=AXIS_POINTS * POINT, color=canvas.ink, parse_math=False)
    widths = [canvas.width_of(label) + 10 for label in labels]
    axes.set_xlim(*limits_with_labels(values, widths, frame.width - NAMES_WIDTH))
    axes.invert_yaxis()
    axes.axvline(0, color=visual.container("border", "color"), linewidth=1)
    axes.set_xticks([])


def limits_with_labels(values: list[float], widths: list[float], pixels: float) -> tuple[float, float]:
    """The limits of an axis of so many `pixels` that leave room for the labels beyond the longest bars of each side."""
    left = max((width for value, width in zip(values, widths, strict=True) if value < 0), default=0)
    right = max((width for value, width in zip(values, widths, strict=True) if value >= 0), default=0)
    low, high = min([0, *values]), max([0, *values])
    scale = (high - low or 1) / (pixels - left - right)
    return low - left * scale, high + right * scale


def draw_donut(canvas: Canvas, frame: Frame, visual: Visual, dashboard: Dashboard) -> None:
    category, field = visual.field("Category"), visual.field("Y")
    shares = {name: row[field.name] for name, row in by_category(dashboard, category, [field.name]).items()}
    shares = {name: share for name, share in shares.items() if share > 0}
    if not shares:
        return
    colours = series_colours(visual) | {BLANK: canvas.muted}
    decimals = int(visual.style("labels", "percentageLabelPrecision", 1))
    ring = 1 - visual.style("slices", "innerRadiusRatio", 60) / 100
    axes = canvas.chart(frame.inner(bottom=66))
    axes.pie(
        shares.values(),
        colors=[colours.get(name, canvas.muted) for name in shares],
        startangle=90,
        counterclock=False,
        wedgeprops={"width": ring, "edgecolor": canvas.paper},
    )
    for position, (name, share) in enumerate(shares.items()):
        x = frame.x + position % 2 * frame.width / 2
        y = frame.y + frame.height - 46 + position // 2 * 24
        text = f"{name}  {share / sum(shares.values()):.{decimals}%}"
        canvas.legend(Frame(x, y, 0, 0), {text: colours.get(name, canvas.muted)})


class Column(NamedTuple):
    """A column of a table: what it shows, its texts from the title down, and how it looks."""

    field: Field
    figures: list[Any]
    texts: list[str]
    look: Document  # the properties that the table has for this column alone
    colours: list[str | None]  # of the texts below the title


def table_columns(visual: Visual, dashboard: Dashboard, room: int) -> list[Column]:
    """The columns of a table with the first `room` rows that pass its filter; Power BI scrolls to the others."""
    fields = visual.fields("Values")
    labels = [field for field in fields if not field.is_measure]
    if len(labels) != 1:
        raise visual.error(f"wanted one column beside the measures in Values, found {len(labels)}")
    looks = {field: column_look(visual, field) for field in fields}
    colour_measures = {field: measure_of(look["fontColor"]) for field, look in looks.items() if "fontColor" in look}
    measures = [field.name for field in fields if field.is_measure]
    rows = passing_rows(dashboard, visual, labels[0], [*measures, *filter(None, colour_measures.values())], room)
    return [
        Column(
            field,
            [row[field.name] for row in rows],
            [field.title, *(dashboard.formatted(field, row[field.name]) for row in rows)],
            looks[field],
            [row.get(colour_measures.get(field)) for row in rows],
        )
        for field in fields
    ]


def column_look(visual: Visual, field: Field) -> Document:
    """The properties that a table has for one of its columns."""
    found: Document = {}
    for group in visual.document["visual"].get("objects", {}):
        for entry in visual.entries(group):
            if entry.get("selector", {}).get("metadata") == field.column:
                found |= entry["properties"]
    return found


def draw_table(canvas: Canvas, frame: Frame, visual: Visual, dashboard: Dashboard) -> None:
    height = 20 + 2 * visual.style("grid", "rowPadding", 3)
    columns = table_columns(visual, dashboard, room=int(frame.height // height) - 1)
    widths = [
        max(canvas.width_of(column.texts[0], weight="bold"), *map(canvas.width_of, column.texts[1:]), 0) + 2 * CELL
        for column in columns
    ]
    at_label = next(place for place, column in enumerate(columns) if not column.field.is_measure)
    widths[at_label] += frame.width - sum(widths)
    canvas.box(Frame(frame.x, frame.y, frame.width, height), visual.style("columnHeaders", "backColor", canvas.paper))
    write = canvas.wrap if visual.style("values", "wordWrap", False) else canvas.cut
    for place, column in enumerate(columns):
        left = frame.x + sum(widths[:place])
        draw_column(canvas, Frame(left, frame.y, widths[place], height), column, write)
    for line in range(1, len(columns[0].texts)):
        canvas.rule(frame.x, frame.y + line * height, frame.width, visual.style("grid", "gridHorizontalColor"))


def draw_column(canvas: Canvas, cell: Frame, column: Column, write: Callable[..., None]) -> None:
    """One column of a table; `cell` is its uppermost cell."""
    look = column.look
    standard = "right" if column.field.is_measure else "left"
    alignment = literal(look["alignment"]).lower() if "alignment" in look else standard
    x = {"left": cell.x + CELL, "center": cell.x + cell.width / 2, "right": cell.x + cell.width - CELL}[alignment]
    for line, text in enumerate(column.texts):
        y = cell.y + line * cell.height
        options: dict[str, Any] = {"ha": alignment, "weight": "normal" if line else "bold"}
        if line:
            fill_cell(canvas, cell._replace(y=y), column, column.figures[line - 1])
            options["colour"] = column.colours[line - 1] or ""
        write(x, y + cell.height / 2, text, cell.width - 2 * CELL + 1, **options)


def fill_cell(canvas: Canvas, cell: Frame, column: Column, figure: float | None) -> None:
    """The shade and the bar behind a figure."""
    if "backColor" in column.look:
        rule = column.look["backColor"]["solid"]["color"]["expr"].get("FillRule", {}).get("FillRule", {})
        if "linearGradient2" in rule:
            canvas.box(cell.inner(2, 1, 2, 1), gradient(rule["linearGradient2"], column.figures, figure))
    if "dataBars" in column.look and figure and figure > 0:
        width = (cell.width - 4) * figure / max(filter(None, column.figures))
        colour = literal(column.look["dataBars"]["positiveColor"])
        canvas.box(Frame(cell.x + 2, cell.y + 3, width, cell.height - 6), colour)


def gradient(stops: Document, figures: list[float | None], figure: float | None) -> tuple[float, ...]:
    """The colour of a figure between the smallest and the largest; blank counts as zero."""
    known = [each or 0 for each in figures]
    low, high = min(known), max(known)
    colours = [literal({"expr": stops[end]["color"]}) for end in ("min", "max")]
    return LinearSegmentedColormap.from_list("", colours)(((figure or 0) - low) / ((high - low) or 1))


class Line(NamedTuple):
    """A line of a chart: its name in the legend, its colour, and its points (time, figure) in order."""

    name: str
    colour: str
    points: list[tuple[datetime, float]]


def read_points(dashboard: Dashboard, time: Field, measure: str, where: dict[str, list] | None = None) -> list:
    rows = dashboard.groups([time], [measure], where)
    return sorted((datetime.fromisoformat(row[time.name]), row[measure]) for row in rows)


def chart_lines(canvas: Canvas, visual: Visual, dashboard: Dashboard) -> list[Line]:
    """The lines of a line chart: one, or one for each value of its series that has a figure."""
    time, field = visual.field("Category"), visual.field("Y")
    if not visual.fields("Series"):
        return [Line("", visual.style("dataPoint", "fill"), read_points(dashboard, time, field.name))]
    series = visual.field("Series")
    colours = series_colours(visual)
    if colours:
        names = in_order(dashboard, series)
    else:  # too many to draw: the largest, up to the first that the measure leaves out
        names = []
        for name in largest_coins(dashboard, series)[: len(canvas.palette)]:
            if dashboard.values([field.name], {series.column: name})[field.name] is None:
                break
            colours[name] = canvas.palette[len(names)]
            names.append(name)
    lines = [
        Line(name, colours.get(name, canvas.muted), read_points(dashboard, time, field.name, {series.column: [name]}))
        for name in names
    ]
    return [line for line in lines if line.points]


def above_zero(lines: list[Line]) -> list[Line]:
    """The lines without the points that a logarithmic scale has no place for."""
    positive = [line._replace(points=[point for point in line.points if point[1] > 0]) for line in lines]
    return [line for line in positive if line.points]


def draw_lines(canvas: Canvas, frame: Frame, visual: Visual, dashboard: Dashboard) -> None:
    is_logarithmic = visual.style("valueAxis", "logAxisScale", False)
    lines = chart_lines(canvas, visual, dashboard)
    if is_logarithmic:
        lines = above_zero(lines)
    has_legend = any(line.name for line in lines)
    if has_legend:
        canvas.legend(frame, {line.name: line.colour for line in lines})
    axes = canvas.chart(frame.inner(left=64, top=30 if has_legend else 4, bottom=30))
    for line in lines:
        marker = "o" if len(line.points) == 1 else ""
        axes.plot(*zip(*line.points, strict=True), color=line.colour, linewidth=2.4, marker=marker)
    times = {time for line in lines for time, _ in line.points}
    if len(times) == 1:
        axes.set_xlim(*(time + timedelta(hours=hours) for time in times for hours in (-12, 12)))
    axes.grid(axis="y", color=visual.style("valueAxis", "gridlineColor"))
    scale_axes(canvas, axes, is_logarithmic)


def scale_axes(canvas: Canvas, axes: Axes, is_logarithmic: bool) -> None:
    """Dates along the bottom, USD up the side."""
    locator = AutoDateLocator(maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.xaxis.get_offset_text().set(color=canvas.muted, fontsize=AXIS_POINTS * POINT)
    if is_logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="minor", length=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: abbreviate(value)))


def draw_slicer(canvas: Canvas, frame: Frame, visual: Visual, dashboard: Dashboard) -> None:
    field = visual.field("Values")
    edge = visual.container("border", "color")
    canvas.box(Frame(frame.x, frame.y, frame.width, 28), canvas.paper, edge=edge, radius=4)
    canvas.text(frame.x + 12, frame.y + 14, "Search", colour=canvas.muted)
    names = in_order(dashboard, field)
    for line, name in enumerate(names[: int((frame.height - 36) // 25)]):
        y = frame.y + 50 + line * 25
        canvas.box(Frame(frame.x + 2, y - 6, 12, 12), canvas.paper, edge=canvas.muted)
        canvas.cut(frame.x + 24, y, name, frame.width - 40)


def draw_unknown(canvas: Canvas, frame: Frame, visual: Visual, _: Dashboard) -> None:
    text = f"{visual.kind}: see it in Power BI"
    canvas.text(frame.x + frame.width / 2, frame.y + frame.height / 2, text, ha="center")


# What reading JSON of an unexpected form gives.
MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError)
DRAW = {
    "textbox": draw_textbox,
    "card": draw_card,
    "cardVisual": draw_line_of_text,
    "clusteredBarChart": draw_bars,
    "donutChart": draw_donut,
    "tableEx": draw_table,
    "lineChart": draw_lines,
    "slicer": draw_slicer,
}


def ask_at_once(dashboard: Dashboard, page: Page) -> None:
    """Ask for all that the tables of a page are sorted by: of 17,000 coins together in two thirds of the time."""
    orders: dict[Field, list[str]] = {}
    for visual in (visual for visual in page.visuals if visual.kind == "tableEx" and visual.sort):
        for label in (field for field in visual.fields("Values") if not field.is_measure):
            if visual.sort[0].is_measure:
                orders.setdefault(label._replace(title=""), []).append(visual.sort[0].name)
    for label, measures in orders.items():
        dashboard.groups([label], dict.fromkeys(measures))


def draw_page(dashboard: Dashboard, page: Page, theme: Document) -> Figure:
    """The picture of one page."""
    canvas = Canvas(page, theme)
    ask_at_once(dashboard, page)
    for visual in page.visuals:
        draw = DRAW.get(visual.kind, draw_unknown)
        try:
            draw(canvas, draw_container(canvas, visual), visual, dashboard)
        except MALFORMED as error:
            raise visual.error(
                f"a part of it is missing or of another form than draw_preview.py knows ({error!r})"
            ) from error
    canvas.text(24, page.definition["height"] + FOOTER / 2, CREDIT, colour=canvas.muted)
    return canvas.figure
