"""Read the dashboard's source: the model (TMDL files) and the report (PBIR files).

What cannot be read is a SourceError that names the file and the line; check_source.py finds what can be read and is
wrong all the same.

TMDL is described at https://learn.microsoft.com/analysis-services/tmdl/tmdl-overview, PBIR at
https://learn.microsoft.com/power-bi/developer/projects/projects-report.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from etl_crypto import ConfigError

Document = dict[str, Any]


class SourceError(ConfigError):
    """The dashboard's source has a mistake: `file: what is wrong`. Nothing is built from it."""


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise SourceError(f"{path} cannot be read: {reason}") from error


# ---------------------------------------------------------------------------------------------------------------- TMDL

NAME = r"'(?:[^']|'')*'|[^\s='][^\s=]*"
OBJECT = re.compile(rf"(?P<kind>\w+)(?:[ ]+(?P<name>{NAME}))?[ ]*(?:=[ ]*(?P<expression>.*))?")
PROPERTY = re.compile(r"(?P<word>\w+):[ ]*(?P<value>.*)")
REFERENCE = re.compile(rf"ref (?P<kind>\w+) (?P<name>{NAME})")
FENCE = "```"  # around a block, as Desktop writes it where white space matters

Objects = dict[str, dict[str, "Node"]]  # by kind and name


@dataclass
class Node:
    """One object of a TMDL file with what stands beneath it: `kind name = expression`, or a word such as isHidden."""

    path: Path
    line: int
    kind: str
    name: str
    expression: str | None = None
    expression_line: int = 0  # where the expression begins
    description: str = ""
    properties: dict[str, str] = field(default_factory=dict)
    children: list[Node] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Node]:
        return [child for child in self.children if child.kind == kind]

    @property
    def is_flag(self) -> bool:
        """Whether it is a bare word."""
        return not self.name and self.expression is None and not self.children

    def error(self, problem: str, line: int | None = None) -> SourceError:
        what = f"{self.kind} {self.name}".strip()
        return SourceError(f"{self.path}, line {line or self.line}: {what}: {problem}")


def unquote(name: str) -> str:
    return name[1:-1].replace("''", "'") if name.startswith("'") else name


def read_tmdl(path: Path) -> list[Node]:
    """The objects at the left margin of a TMDL file. Raises SourceError."""
    lines = read_text(path).splitlines()
    root = Node(path, 0, "file", "")
    parents = [root]  # the object that each indentation belongs to
    description: list[str] = []
    at = 0
    while at < len(lines):
        text = lines[at].strip("\t").rstrip()
        depth = len(lines[at]) - len(lines[at].lstrip("\t"))
        at += 1
        is_property = depth > 0 and PROPERTY.fullmatch(text)
        if description and (not text or is_property):
            raise SourceError(f"{path}, line {at}: a description (///) stands above nothing that it could describe")
        if not text:
            continue
        if text.startswith(" ") or depth >= len(parents):
            raise SourceError(
                f"{path}, line {at}: it is indented further than what stands above it: a tab too many, a space in place"
                " of a tab, or a = missing above"
            )
        del parents[depth + 1 :]
        if text.startswith("///"):
            description.append(text.removeprefix("///").strip())
        elif is_property:
            add_property(parents[-1], is_property["word"], is_property["value"].strip(), at)
        else:
            node, expression = to_node(path, at, text)
            if expression is not None:
                at = read_expression(node, expression, lines, at, depth)
            node.description = " ".join(description)
            description.clear()
            parents[-1].children.append(node)
            parents.append(node)
    return root.children


def to_node(path: Path, line: int, text: str) -> tuple[Node, str | None]:
    """The object that a line declares, and what stands behind its `=`."""
    if found := REFERENCE.fullmatch(text):
        return Node(path, line, f"ref {found['kind']}", unquote(found["name"])), None
    if found := OBJECT.fullmatch(text):
        return Node(path, line, found["kind"], unquote(found["name"] or "")), found["expression"]
    raise SourceError(f"{path}, line {line}: {text!r} is neither an object nor a property")


def add_property(node: Node, word: str, value: str, line: int) -> None:
    if word in node.properties:
        raise node.error(f"{word} is there twice", line)
    is_quoted = len(value) > 1 and value.startswith('"') and value.endswith('"')
    node.properties[word] = value[1:-1].replace('""', '"') if is_quoted else value


def read_expression(node: Node, first: str, lines: list[str], at: int, depth: int) -> int:
    """Give `node` its expression: the rest of its line, or the block below it. The number of lines read is returned."""
    if first and first != FENCE:
        node.expression, node.expression_line = first.rstrip(), at
        return at
    start = at
    while at < len(lines) and belongs_to_block(lines[at], depth + 2, is_fenced=bool(first)):
        at += 1
    block = lines[start:at]
    if first and at == len(lines):
        raise node.error(f"the closing {FENCE} is missing")
    node.expression_line = start + 1
    node.expression = "\n".join(line[depth + 2 :] if line.strip() else "" for line in block).rstrip()
    if not node.expression:
        raise node.error("the expression is missing: it is indented by two tabs more than its name")
    return at + 1 if first else at


def belongs_to_block(line: str, depth: int, is_fenced: bool) -> bool:
    """A block ends at its closing fence, else before the first line that is indented less."""
    return line.strip() != FENCE if is_fenced else not line.strip() or line.startswith("\t" * depth)


# --------------------------------------------------------------------------------------------------- the model as TMSL

PLURALS = {"changedProperty": "changedProperties"}  # of TMSL


class Model(NamedTuple):
    """The semantic model: `tmsl` is what DataModelSchema in a .pbit holds; `places` says in which file and line a
    measure stands."""

    tmsl: Document
    places: dict[str, str]

    @property
    def tables(self) -> dict[str, Document]:
        return {table["name"]: table for table in self.tmsl["model"]["tables"]}

    @property
    def measures(self) -> dict[str, Document]:
        return {each["name"]: each for table in self.tables.values() for each in table.get("measures", [])}

    def has(self, kind: str, table: str | None, name: str | None) -> bool:
        """Whether a table has a column or measure; `kind` is Column or Measure."""
        members = self.tables.get(table or "", {}).get(f"{kind.lower()}s", [])
        return any(member["name"] == name for member in members)

    def parameter(self, name: str) -> str:
        """The value of a parameter of the queries, as M writes it."""
        (text,) = (each["expression"] for each in self.tmsl["model"]["expressions"] if each["name"] == name)
        return text.partition(" meta ")[0]


def read_objects(folder: Path) -> Objects:
    """The objects in the TMDL files of `folder`. Raises SourceError."""
    objects: Objects = {}
    for path in sorted(folder.glob("**/*.tmdl")):
        for node in read_tmdl(path):
            if node.name in objects.setdefault(node.kind, {}):
                raise node.error("it is there twice")
            objects[node.kind][node.name] = node
    for kind in ("database", "model", "table"):
        if kind not in objects:
            raise SourceError(f"{folder}: no {kind} in its files")
    return objects


def to_model(objects: Objects) -> Model:
    """The model of objects without a mistake."""
    (database,), (model,) = objects["database"].values(), objects["model"].values()
    tmsl = to_tmsl(model)
    del tmsl["name"]
    for kind in ("table", "relationship", "expression"):
        order = objects.get(f"ref {kind}", objects.get(kind, {}))
        tmsl[f"{kind}s"] = [to_tmsl(objects[kind][name]) for name in order]
    level = int(database.properties["compatibilityLevel"])
    measures = (measure for table in objects["table"].values() for measure in table.of_kind("measure"))
    return Model(
        {"name": database.name, "compatibilityLevel": level, "model": tmsl},
        {measure.name: f"{measure.path}, line {measure.line}" for measure in measures},
    )


def to_tmsl(node: Node) -> Document:
    """An object of TMDL with all beneath it as TMSL."""
    tmsl: Document = {"name": node.name} | node.properties
    if node.description:
        tmsl["description"] = node.description
    match node.kind:
        case "annotation":
            return {"name": node.name, "value": node.expression}
        case "changedProperty":
            return {"property": node.expression}
        case "partition":
            (source,) = node.of_kind("source")
            return tmsl | {"source": {"type": node.expression, "expression": source.expression}}
        case "relationship":
            for end in ("from", "to"):
                tmsl[f"{end}Table"], tmsl[f"{end}Column"] = split_reference(tmsl.pop(f"{end}Column"))
        case "measure":
            tmsl["expression"] = node.expression
        case "expression":
            tmsl |= {"expression": node.expression, "kind": "m"}
    for child in node.children:
        if child.kind == "dataAccessOptions":
            tmsl[child.kind] = {option.kind: True for option in child.children}
        elif child.is_flag:
            tmsl[child.kind] = True
        else:
            tmsl.setdefault(PLURALS.get(child.kind, f"{child.kind}s"), []).append(to_tmsl(child))
    return tmsl


def split_reference(text: str) -> list[str]:
    """Table and column of a reference such as crypto_prices.market_cap_tier or 'My Table'.'My Column'."""
    return [unquote(name) for name in re.findall(r"'(?:[^']|'')*'|[^.']+", text)]


# ---------------------------------------------------------------------------------------------------------------- PBIR


class Field(NamedTuple):
    """A column or measure that a visual shows, under the title that it has there."""

    table: str
    name: str
    is_measure: bool
    title: str

    @property
    def column(self) -> str:
        """As filters name it."""
        return f"{self.table}.{self.name}"


class Limit(NamedTuple):
    """A comparison of a measure in a filter; blank passes none."""

    measure: str
    kind: int  # see COMPARISONS
    value: float

    def passes(self, figure: float | None) -> bool:
        return figure is not None and COMPARISONS[self.kind](figure, self.value)


COMPARISONS = (operator.eq, operator.gt, operator.ge, operator.lt, operator.le)  # by their numbers in PBIR
DEFAULT = {"id": "default"}  # the selector of properties that newer visuals have for all of their marks


class Visual(NamedTuple):
    """One visual.json, and the theme's styles of its kind."""

    path: Path
    document: Document
    styles: tuple[Document, ...]  # of its kind first, then of all kinds

    @property
    def kind(self) -> str:
        return self.document["visual"]["visualType"]

    def fields(self, role: str) -> list[Field]:
        """What the visual shows in one of its roles, such as Category, Y or Values."""
        state = self.document["visual"].get("query", {}).get("queryState", {}).get(role, {})
        return [to_field(projection) for projection in state.get("projections", [])]

    def field(self, role: str) -> Field:
        """What it shows in a role that takes one field. Raises SourceError."""
        fields = self.fields(role)
        if len(fields) != 1:
            raise self.error(f"wanted one field as {role}, found {len(fields)}")
        return fields[0]

    def entries(self, group: str, of: str = "objects") -> list[Document]:
        """The properties of a group, such as title or labels, with the selector of the marks that they are for."""
        return self.document["visual"].get(of, {}).get(group, [])

    def style(self, group: str, name: str, default: Any = None, of: str = "objects") -> Any:
        """The value of a property of the visual itself, else of the theme, else `default`, as Power BI looks it up."""
        for entry in self.entries(group, of):
            if entry.get("selector", DEFAULT) == DEFAULT and name in entry["properties"]:
                return literal(entry["properties"][name])
        for styles in self.styles:
            for entry in styles.get(group, []):
                if name in entry:
                    return literal(entry[name])
        return default

    def container(self, group: str, name: str, default: Any = None) -> Any:
        """The value of a property of the frame: title, subTitle, background, border, padding."""
        return self.style(group, name, default, of="visualContainerObjects")

    @property
    def sort(self) -> tuple[Field, bool] | None:
        """What the visual is sorted by first, and whether it descends."""
        orders = self.document["visual"].get("query", {}).get("sortDefinition", {}).get("sort", [])
        return (to_field(orders[0]), orders[0]["direction"] == "Descending") if orders else None

    @property
    def limits(self) -> list[Limit]:
        """What the visual's filters ask of measures: comparisons that all must hold."""
        return [
            Limit(node["Left"]["Measure"]["Property"], node["ComparisonKind"], literal({"expr": node["Right"]}))
            for each in self.document.get("filterConfig", {}).get("filters", [])
            for node in (part.get("Comparison", {}) for part in walk(each.get("filter", {})))
            if "Measure" in node.get("Left", {})
        ]

    def error(self, problem: str) -> SourceError:
        return SourceError(f"{self.path}: {problem}")


class Page(NamedTuple):
    """A page of the report with its visuals from back to front."""

    folder: Path
    definition: Document
    visuals: list[Visual]

    styles: Document  # of the theme, for pages

    @property
    def title(self) -> str:
        return self.definition["displayName"]

    @property
    def background(self) -> str | None:
        """The colour of the page itself, else of the theme."""
        entries = self.definition.get("objects", {}).get("background", [])
        own = [literal(entry["properties"]["color"]) for entry in entries if "color" in entry["properties"]]
        return next(iter([*own, *(literal(entry.get("color")) for entry in self.styles.get("background", []))]), None)


class Report(NamedTuple):
    """The report: its pages in order, its theme, and every file as it goes into the container."""

    pages: list[Page]
    theme: Document
    parts: dict[str, bytes]  # by the name of the part


def literal(value: Any) -> Any:
    """A property's value, of a visual or of a theme: text, number, truth or colour; None where a measure decides it."""
    while isinstance(value, dict) and ("solid" in value or "color" in value):
        value = value.get("solid", value.get("color"))
    if not isinstance(value, dict):
        return value
    text = value.get("expr", {}).get("Literal", {}).get("Value")
    if text is None or text == "null":
        return None
    if text.startswith("'"):
        return text[1:-1].replace("''", "'")
    return text == "true" if text in ("true", "false") else float(text.rstrip("DLM"))


def measure_of(value: Document) -> str | None:
    """The measure that decides a colour, if one does."""
    expression = value["solid"]["color"]["expr"]
    return expression["Measure"]["Property"] if "Measure" in expression else None


def to_field(projection: Document) -> Field:
    ((kind, reference),) = projection["field"].items()
    title = projection.get("displayName", reference["Property"])
    return Field(reference["Expression"]["SourceRef"]["Entity"], reference["Property"], kind == "Measure", title)


def parse_json(text: str, where: str) -> Any:
    def without_repeats(pairs: list[tuple[str, Any]]) -> Document:
        document = dict(pairs)
        if len(document) < len(pairs):
            names = [name for name, _ in pairs]
            raise SourceError(f"{where}: {max(names, key=names.count)} is there twice")
        return document

    try:
        return json.loads(text, object_pairs_hook=without_repeats)
    except json.JSONDecodeError as error:
        raise SourceError(f"{where}: {error.msg} (line {error.lineno})") from error


def report_files(folder: Path) -> list[Path]:
    """The files that make the report, in an order of their own."""
    found = (path for part in ("StaticResources", "definition") for path in (folder / part).glob("**/*"))
    return sorted(path for path in found if path.is_file())


def read_documents(folder: Path) -> dict[Path, Document]:
    """The PBIR files of `folder`. Raises SourceError."""
    documents = {
        path: parse_json(read_text(path), str(path)) for path in report_files(folder) if path.suffix == ".json"
    }
    for path, document in documents.items():
        if not isinstance(document, dict):
            raise SourceError(f"{path}: it holds no JSON object")
    return documents


def to_report(folder: Path, documents: dict[Path, Document]) -> Report:
    """The report of documents without a mistake."""
    pages = folder / "definition" / "pages"
    report = documents[folder / "definition" / "report.json"]
    theme = documents[theme_path(folder, report)]
    return Report(
        [read_page(pages / name, documents, theme) for name in documents[pages / "pages.json"]["pageOrder"]],
        theme,
        {f"Report/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in report_files(folder)},
    )


def theme_path(folder: Path, report: Document) -> Path:
    """The file of the custom theme."""
    name = report["themeCollection"]["customTheme"]["name"]
    return folder / "StaticResources" / "RegisteredResources" / name


def read_page(folder: Path, documents: dict[Path, Document], theme: Document) -> Page:
    styles = theme.get("visualStyles", {})
    visuals = []
    for path in sorted(folder.glob("visuals/*/visual.json")):
        kind = documents[path]["visual"]["visualType"]
        of_kind = (styles.get(kind, {}).get("*", {}), styles.get("*", {}).get("*", {}))
        visuals.append(Visual(path, documents[path], of_kind))
    visuals.sort(key=lambda visual: visual.document["position"]["z"])
    return Page(folder, documents[folder / "page.json"], visuals, styles.get("page", {}).get("*", {}))


def walk(node: Any) -> Iterator[Document]:
    """Every object of a JSON document."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)
