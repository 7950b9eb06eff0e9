"""Find mistakes in the dashboard's source before anything is built from it.

Power BI would refuse the file, or show an empty visual, without saying where to look; a SourceError names the file, the
line where there is one, and the reason: a missing bracket, a name that is not there, a word that the build would lose.
What the DAX of a measure gives is checked later, by evaluating it (build_dashboard.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

from report_source import (
    Document,
    Field,
    Model,
    Node,
    Objects,
    Report,
    SourceError,
    parse_json,
    read_documents,
    read_objects,
    split_reference,
    theme_path,
    to_field,
    to_model,
    to_report,
    unquote,
    walk,
)


def read_source(model_folder: Path, report_folder: Path) -> tuple[Model, Report]:
    """The model and the report. Raises SourceError for the first mistake in them."""
    objects = read_objects(model_folder)
    check_objects(objects)
    model = to_model(objects)
    documents = read_documents(report_folder)
    check_documents(report_folder, documents, model)
    return model, to_report(report_folder, documents)


# --------------------------------------------------------------------------------------------------------- the model


class Words(NamedTuple):
    """What an object of TMDL may hold: properties (`word: value`), flags (`word`), other objects."""

    properties: frozenset[str] = frozenset()
    flags: frozenset[str] = frozenset()
    objects: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()


def words(properties: str = "", flags: str = "", objects: str = "", required: str = "") -> Words:
    return Words(*(frozenset(text.split()) for text in (properties, flags, objects, required)))


# build_dashboard.py carries each of these words into the .pbix. Any other is refused, because the .pbit and the .pbip
# would then say something that the .pbix does not.
NOTES = "annotation changedProperty"
WORDS = {
    "database": words("compatibilityLevel", required="compatibilityLevel"),
    "model": words(
        "culture defaultPowerBIDataSourceVersion sourceQueryCulture",
        "discourageImplicitMeasures",
        f"{NOTES} dataAccessOptions",
        "culture defaultPowerBIDataSourceVersion sourceQueryCulture dataAccessOptions",
    ),
    "dataAccessOptions": words(flags="legacyRedirects returnErrorValuesAsNull"),
    "expression": words("lineageTag", objects=NOTES),
    "table": words("lineageTag", "isHidden", f"{NOTES} column measure partition"),
    "column": words(
        "lineageTag formatString displayFolder dataType summarizeBy sourceColumn sortByColumn",
        "isHidden",
        NOTES,
        "dataType sourceColumn",
    ),
    "measure": words("lineageTag formatString displayFolder", "isHidden", NOTES),
    "partition": words("mode", objects="source", required="mode source"),
    "relationship": words("fromColumn toColumn", required="fromColumn toColumn"),
}
VALUES = {
    "compatibilityLevel": r"\d+",
    "dataType": "string|int64|double|dateTime|boolean",
    "defaultPowerBIDataSourceVersion": "powerBI_V3",
    "mode": "import",
    "summarizeBy": "none|sum|min|max|count|average|distinctCount",
}


def check_objects(objects: Objects) -> None:
    """Raise SourceError where the model names something that is not there, or says what the build cannot carry."""
    for kind, nodes in objects.items():
        for node in nodes.values():
            if kind in ("database", "model", "expression", "table", "relationship"):
                check_words(node)
            elif kind not in ("cultureInfo", "ref cultureInfo", "ref table", "ref relationship", "ref expression"):
                # a cultureInfo holds the words for questions in plain language (Q&A), which Desktop makes again
                raise node.error("the build cannot write such an object into a .pbix")
    for kind in ("table", "relationship", "expression"):
        check_list(objects.get(f"ref {kind}", {}), objects.get(kind, {}))
    tables = objects["table"]
    queries = {*tables, *objects.get("expression", {})}
    for table in tables.values():
        check_table(table, queries)
    for expression in objects.get("expression", {}).values():
        if "IsParameterQuery=true" not in (expression.expression or ""):
            raise expression.error("it is no parameter: its meta record lacks IsParameterQuery=true")
        check_m(expression, queries)
    ends = set()
    for relationship in objects.get("relationship", {}).values():
        check_relationship(relationship, tables)
        if (end := tuple(relationship.properties.values())) in ends:
            raise relationship.error("another relationship joins the same columns")
        ends.add(end)
    check_measures(tables.values())


def check_words(node: Node) -> None:
    """A word that the build does not know there, a value that is none, or a word that is missing."""
    known = WORDS[node.kind]
    if node.kind == "column" and node.expression is not None:
        raise node.error("the build does not work out calculated columns: give the column in the query of its table")
    for word, value in node.properties.items():
        if word in known.flags:
            raise node.error(f"{word} is written without a value")
        check_word(node, word, known.properties)
        if not re.fullmatch(VALUES.get(word, ".+"), value):
            raise node.error(f"{word} is {value!r}, wanted {VALUES.get(word, 'a value')}")
    for child in node.children:
        check_word(node, child.kind, known.flags if child.is_flag else known.objects, child.line)
        if child.kind == "annotation":
            check_annotation(child)
        if child.kind in WORDS:
            check_words(child)
    for word in sorted(known.required - node.properties.keys() - {child.kind for child in node.children}):
        raise node.error(f"it has no {word}")


def check_annotation(node: Node) -> None:
    """Its value; what looks like JSON is JSON."""
    if node.expression is None:
        raise node.error("it has no value: = and the value are missing")
    if node.expression.startswith(("[", "{")):
        parse_json(node.expression, f"{node.path}, line {node.line}: annotation {node.name}")


def check_word(node: Node, word: str, known: frozenset[str], line: int | None = None) -> None:
    if word not in known:
        raise node.error(f"{word!r} is not among what the build can write there into a .pbix: {sorted(known)}", line)


def check_list(listed: dict[str, Node], there: dict[str, Node]) -> None:
    """What model.tmdl lists by `ref table` is what the files hold; of a kind that it does not list, all are there."""
    for name, node in listed.items():
        if name not in there:
            raise node.error("no file has it")
    for name, node in there.items():
        if listed and name not in listed:
            raise node.error("model.tmdl does not list it (ref)")


def check_table(table: Node, queries: set[str]) -> None:
    """Columns that can be built and sorted, and one query that gives them."""
    members = [*table.of_kind("column"), *table.of_kind("measure")]
    names = [node.name.lower() for node in members]
    for node in members:
        if names.count(node.name.lower()) > 1:
            raise node.error("the table has this name twice (Power BI does not tell case)")
    partitions = table.of_kind("partition")
    if len(partitions) != 1 or partitions[0].expression != "m" or len(partitions[0].of_kind("source")) != 1:
        raise table.error("wanted one partition of it, with a source in M")
    (source,) = partitions[0].of_kind("source")
    check_m(source, queries)
    columns = {column.name for column in table.of_kind("column")}
    for column in table.of_kind("column"):
        order = unquote(column.properties.get("sortByColumn", ""))
        if order and order not in columns - {column.name}:
            raise column.error(f"it is sorted by {order}, which is no other column of the table")
        if column.properties["sourceColumn"] not in (source.expression or ""):
            raise column.error(f"the query does not name its sourceColumn {column.properties['sourceColumn']}")


def check_relationship(relationship: Node, tables: dict[str, Node]) -> None:
    """Two columns of the model, of one type."""
    columns = {
        f"{table.name}.{column.name}": column.properties["dataType"]
        for table in tables.values()
        for column in table.of_kind("column")
    }
    types = []
    for end in ("fromColumn", "toColumn"):
        name = ".".join(split_reference(relationship.properties[end]))
        if name not in columns:
            raise relationship.error(f"{end} is {name}, which the model does not have")
        types.append(columns[name])
    if types[0] != types[1]:
        raise relationship.error(f"its columns are of two types, {types[0]} and {types[1]}")


# ------------------------------------------------------------------------------------------------------------------- M

M_TOKEN = re.compile(
    r'(?P<space>\s+|//[^\n]*|/\*.*?\*/)|(?P<text>"(?:[^"]|"")*")|(?P<quoted>#"(?:[^"]|"")*")'
    r"|(?P<field>\[[\w .%]+\]\??)|(?P<name>#?[A-Za-z_][\w.]*)|(?P<number>\d[\w.]*)|(?P<arrow>=>)|(?P<sign>.)",
    re.S,
)
M_TYPES = re.compile(
    "table|text|number|datetime|date|time|datetimezone|duration|logical|binary|list|record|function|any|anynonnull|none"
)
M_VALUES = re.compile("true|false|null|_")
M_WORDS = re.compile(
    "let|in|each|if|then|else|and|or|not|as|is|type|meta|error|try|otherwise|catch|optional|nullable|action"
    f"|{M_TYPES.pattern}|{M_VALUES.pattern}"
)
AFTER_VALUE = (",", "in", "then", "else", "and", "or", "meta", "as", "is", "otherwise")
CLOSES = {")": "(", "]": "[", "}": "{"}

Token = re.Match[str]


def check_m(node: Node, queries: set[str]) -> None:
    """Brackets that do not match, values without a sign between them, and names of no step, parameter or query."""
    tokens = [each for each in M_TOKEN.finditer(node.expression or "") if each.lastgroup != "space"]
    enclosing = check_brackets(node, tokens)
    check_signs(node, tokens)
    check_names(node, tokens, enclosing, queries)


def m_error(node: Node, token: Token, problem: str) -> SourceError:
    line = node.expression_line + token.string.count("\n", 0, token.start())
    return node.error(f"{token[0]} {problem}", line)


def check_brackets(node: Node, tokens: list[Token]) -> list[str]:
    """The bracket that each token stands in; `` where it stands in none."""
    opened: list[Token] = []
    enclosing = []
    for token in tokens:
        if token[0] == '"':
            raise m_error(node, token, "begins a text that does not end")
        if token[0] in CLOSES and (not opened or opened.pop()[0] != CLOSES[token[0]]):
            raise m_error(node, token, "closes nothing")
        enclosing.append(opened[-1][0] if opened else "")
        if token[0] in CLOSES.values():
            opened.append(token)
    if opened:
        raise m_error(node, opened[-1], "is not closed")
    return enclosing


def check_signs(node: Node, tokens: list[Token]) -> None:
    """Two values that follow one another, or a sign that follows no value."""
    follows_value = False
    for token in tokens:
        if (begins_value(token) and follows_value) or (token[0] in AFTER_VALUE and not follows_value):
            raise m_error(node, token, "cannot stand here: a comma or a value before it is missing")
        follows_value = ends_value(token)


def begins_value(token: Token) -> bool:
    """Whether a value of M begins with the token; brackets do not count, as they may be a call, an item or a field."""
    if token.lastgroup != "name":
        return token.lastgroup in ("text", "quoted", "number")
    return not M_WORDS.fullmatch(token[0]) or bool(M_VALUES.fullmatch(token[0]))


def ends_value(token: Token) -> bool:
    is_end = token[0] in CLOSES or token[0] == "?" or token.lastgroup == "field"
    return is_end or begins_value(token) or bool(M_TYPES.fullmatch(token[0]))


def check_names(node: Node, tokens: list[Token], enclosing: list[str], queries: set[str]) -> None:
    """Names with a dot are Power Query's own library; names that [ ] begins with are fields.

    A rough check: it knows neither what a library has nor which step may see which.
    """
    known = queries | {f'#"{query}"' for query in queries}
    for parameters in re.findall(r"\(([\w\s,]*)\)\s*(?:as\s+\w+\s*)?=>", node.expression or ""):
        known |= {*parameters.replace(",", " ").split()}
    signs = ["", *(token[0] for token in tokens), ""]
    used = []
    for place, token in enumerate(tokens):
        is_field = enclosing[place] == "[" and signs[place] in ("[", ",")
        if token.lastgroup in ("name", "quoted") and not is_field:
            if signs[place + 2] in ("=", "as", "=>"):  # the name is given here
                known.add(token[0])
            used.append(token)
    for token in used:
        if token[0] not in known and not is_library_name(token[0]):
            raise m_error(node, token, "is no step, parameter or query")


def is_library_name(name: str) -> bool:
    """A word of M, or a name that Power Query brings along, such as Table.Sort or #date."""
    return "." in name or bool(re.fullmatch(r"#\w+", name) or M_WORDS.fullmatch(name))


# ----------------------------------------------------------------------------------------------------------------- DAX

# Words of DAX that functions take as arguments, which the parser takes for names.
DAX_WORDS = re.compile(
    "asc|desc|skip|dense|blank|keep|abs|rel|second|minute|hour|day|week|month|quarter|year|both|none|oneway"
)
DAX_TEXT = re.compile(r'"(?:[^"]|"")*"|//[^\n]*|--[^\n]*|/\*.*?\*/', re.S)  # texts and comments
# What the parser says of measures that Power BI itself accepts, such as variables with an underscore.
NOT_BELIEVED = {"InvalidVariableName", "InvalidArgumentType", "ExpectedScalar", "AmbiguousReference"}


def check_measures(tables: Iterable[Node]) -> None:
    """A measure whose DAX is no DAX, or names what the model does not have, or needs itself.

    The engine that evaluates the measures gives blank for such a mistake, as for a figure that is not there.
    """
    import sidemantic_dax as dax

    known = dax.ModelMetadata(
        [
            dax.ModelTable(table.name, *([each.name for each in table.of_kind(kind)] for kind in ("column", "measure")))
            for table in tables
        ]
    )
    measures: dict[str, Node] = {}
    for measure in (measure for table in tables for measure in table.of_kind("measure")):
        if measure.name.lower() in measures:
            raise measure.error("another table has a measure of this name")
        measures[measure.name.lower()] = measure
        check_dax(measure, known)
    uses = {
        name: measures.keys()
        & {used.lower() for used in re.findall(r"\[([^\]]+)\]", DAX_TEXT.sub("", measure.expression or ""))}
        for name, measure in measures.items()
    }
    try:
        TopologicalSorter(uses).prepare()
    except CycleError as error:
        circle = [measures[name] for name in error.args[1]]
        raise circle[0].error(f"it needs itself: {' > '.join(measure.name for measure in circle)}") from error


def check_dax(measure: Node, known: Any) -> None:
    import sidemantic_dax as dax
    from pbix_mcp.builder import find_reserved_var_names

    text = measure.expression or ""
    try:
        issues = [
            *dax.validate_expression_against_model(text, known),
            *dax.validate_expression(text, report_unrecognized_functions=True),
        ]
    except ValueError as error:  # such as: expected `)` at 31..31, in bytes
        place = re.search(r" at (\d+)\.\.\d+", str(error))
        before = text.encode()[: int(place[1])] if place else b""
        problem = str(error).partition(" at ")[0]
        raise measure.error(problem, measure.expression_line + before.count(b"\n")) from error
    for issue in issues:
        if is_mistake(issue, text):
            raise measure.error(issue.message)
    if reserved := find_reserved_var_names(text):
        raise measure.error(f"{reserved[0]} is a word of DAX: name the variable otherwise")


def is_mistake(issue: Any, text: str) -> bool:
    """Whether what the parser reports is a mistake, not a word of DAX or a column that the measure makes itself."""
    name = issue.message.rsplit(" ", 1)[-1].strip("`'\"[]").lower()
    made_here = issue.code.value == "UnknownMember" and (f'"{name}"' in text.lower() or name == "value")
    word = issue.code.value == "UnknownIdentifier" and bool(DAX_WORDS.fullmatch(name))
    return issue.code.value not in NOT_BELIEVED and not made_here and not word


# ---------------------------------------------------------------------------------------------------------------- PBIR

# The keys that objects of PBIR have where the build reads them: Power BI passes over a misspelled one.
KEYS = {
    "visual.json": "$schema name position visual filterConfig isHidden parentGroupName annotations howCreated",
    "position": "x y z width height tabOrder angle",
    "visual": "visualType query objects visualContainerObjects drillFilterOtherVisuals syncGroup autoSelectVisualType",
    "query": "queryState sortDefinition",
    "sortDefinition": "sort isDefaultSort",
    "sort": "field direction",
    "filterConfig": "filters filterSortOrder",
    "objects": "properties selector",
    "queryState": "projections",
    "projections": "field queryRef nativeQueryRef active displayName format hidden",
    "expr": "Literal Measure Column Aggregation FillRule ThemeDataColor Conditional ResourcePackageItem SelectRef",
}
REQUIRED = {
    "visual.json": "name position visual",
    "position": "x y z width height",
    "visual": "visualType",
    "sort": "field direction",
    "projections": "field queryRef",
    "page.json": "name displayName width height",
}
LITERAL = re.compile(r"'(?:[^']|'')*'|true|false|null|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?[DLM]|datetime'[^']*'")


def check_documents(folder: Path, documents: dict[Path, Document], model: Model) -> None:
    """Raise SourceError where the report is not whole, or shows what `model` does not have."""
    definition = folder / "definition"
    for path in (definition / name for name in ("version.json", "report.json", "pages/pages.json")):
        if path not in documents:
            raise SourceError(f"{path} is missing")
    check_theme(folder, documents)
    check_pages(definition / "pages", documents)
    for path, document in documents.items():
        if path.name == "visual.json":
            check_visual(path, document)
        check_literals(path, document)
        check_fields(path, document, model)


def check_pages(folder: Path, documents: dict[Path, Document]) -> None:
    """pages.json lists the folders that are there, each with its page.json, and opens one of them."""
    order = part(folder / "pages.json", documents[folder / "pages.json"], "pageOrder", list)
    if not order or not all(isinstance(name, str) for name in order):
        raise SourceError(f"{folder / 'pages.json'}: pageOrder does not list the names of the pages' folders")
    pages = {path.parent.name: path for path in documents if path.name == "page.json"}
    for name in sorted({*order, *pages}):
        if order.count(name) != 1 or name not in pages:
            raise SourceError(
                f"{folder / 'pages.json'}: pageOrder has {name} {order.count(name)} times; wanted once for"
                f" each folder with a page.json: {', '.join(sorted(pages))}"
            )
    if documents[folder / "pages.json"].get("activePageName", order[0]) not in pages:
        raise SourceError(f"{folder / 'pages.json'}: there is no page of the activePageName")
    for name, path in pages.items():
        check_keys(path, "page.json", documents[path])
        check_numbers(path, documents[path], ("width", "height"))
        if documents[path]["name"] != name:
            raise SourceError(f"{path}: its name is not that of its folder")
        names = [
            document.get("name") for each, document in documents.items() if each.match(f"{name}/visuals/*/visual.json")
        ]
        if len(names) > len(set(names)):
            raise SourceError(f"{path}: two of its visuals are called {max(names, key=names.count)}")


def part(path: Path, node: Document, key: str, kind: type) -> Any:
    """The object or list that `node` has for `key`, or an empty one. Raises SourceError for anything else."""
    value = node.get(key, kind())
    if not isinstance(value, kind) or (kind is list and not all(isinstance(each, dict | str) for each in value)):
        raise SourceError(f"{path}: {key} is not {'a list of objects' if kind is list else 'an object'}")
    return value


def check_numbers(path: Path, node: Document, keys: Iterable[str]) -> None:
    for key in keys:
        if not isinstance(node.get(key), int | float) or (key in ("width", "height") and node[key] <= 0):
            raise SourceError(f"{path}: {key} is {node.get(key)!r}, wanted a number of pixels")


def check_theme(folder: Path, documents: dict[Path, Document]) -> None:
    """The custom theme is registered, and its file is there."""
    path = folder / "definition" / "report.json"
    try:
        theme = theme_path(folder, documents[path])
        items = [item["path"] for package in documents[path]["resourcePackages"] for item in package["items"]]
    except KeyError as error:
        raise SourceError(f"{path}: {error} is missing") from error
    if theme.name not in items:
        raise SourceError(f"{path}: the custom theme {theme.name} is in none of its resourcePackages")
    if theme not in documents:
        raise SourceError(f"{path}: the file {theme} is missing")
    if documents[theme].get("name") != theme.name:
        raise SourceError(f"{theme}: its name is not {theme.name}, as report.json calls it")
    for kind, styles in part(theme, documents[theme], "visualStyles", dict).items():
        for name, groups in part(theme, {kind: styles}, kind, dict).items():
            for group in part(theme, {name: groups}, name, dict):
                part(theme, groups, group, list)


def check_visual(path: Path, document: Document) -> None:
    """The keys of visual.json, down to the fields that it shows and the properties that it sets."""
    check_keys(path, "visual.json", document)
    position = part(path, document, "position", dict)
    check_keys(path, "position", position)
    check_numbers(path, position, ("x", "y", "z", "width", "height"))
    check_keys(path, "filterConfig", part(path, document, "filterConfig", dict))
    visual = part(path, document, "visual", dict)
    check_keys(path, "visual", visual)
    query = part(path, visual, "query", dict)
    check_keys(path, "query", query)
    sort = part(path, query, "sortDefinition", dict)
    check_keys(path, "sortDefinition", sort)
    for order in part(path, sort, "sort", list):
        check_keys(path, "sort", order)
        read_field(path, order, "what it is sorted by")
        if order["direction"] not in ("Ascending", "Descending"):
            raise SourceError(f"{path}: the direction {order['direction']} is neither Ascending nor Descending")
    state = part(path, query, "queryState", dict)
    for role in state:
        check_keys(path, "queryState", part(path, state, role, dict))
        for projection in part(path, state[role], "projections", list):
            check_keys(path, "projections", projection)
    for objects in (part(path, visual, name, dict) for name in ("objects", "visualContainerObjects")):
        for entry in (entry for group in objects for entry in part(path, objects, group, list)):
            check_keys(path, "objects", entry)
            part(path, entry, "properties", dict)


def check_keys(path: Path, what: str, node: Document) -> None:
    """No key that `what` does not have, and all that it needs."""
    for key in REQUIRED.get(what, "").split():
        if key not in node:
            raise SourceError(f"{path}: {key} is missing in {what}")
    for key in node:
        if what in KEYS and key not in KEYS[what].split():
            raise SourceError(f"{path}: {key} is no key of {what}, which has {KEYS[what]}")


def check_literals(path: Path, document: Document) -> None:
    for node in walk(document):
        if isinstance(node.get("expr"), dict):
            check_keys(path, "expr", node["expr"])
        if "Literal" in node and not LITERAL.fullmatch(str(node["Literal"].get("Value"))):
            raise SourceError(f"{path}: {node['Literal']} is no literal: a text is 'quoted', a number ends with D or L")


def check_fields(path: Path, document: Document, model: Model) -> None:
    """What a PBIR file shows, sorts, filters or colours by is in the model, and its names for it agree."""
    aliases = {}
    for source in (source for node in walk(document) for source in node.get("From", [])):
        aliases[source.get("Name")] = source.get("Entity")
    shown, formatted = set(), []
    for node in walk(document):
        for kind in ("Column", "Measure"):
            if isinstance(node.get(kind), dict):
                check_reference(path, kind, node[kind], aliases, model)
        if "queryRef" in node:
            shown.add(check_projection(path, node))
        if "metadata" in node.get("selector", {}):
            formatted.append(node["selector"]["metadata"])
    for name in formatted:
        if name not in shown:
            raise SourceError(f"{path}: it formats {name}, which it does not show")


def check_reference(path: Path, kind: str, reference: Document, aliases: dict[Any, Any], model: Model) -> None:
    """The model has the column or measure; in filters its table has an alias."""
    source = reference.get("Expression", {}).get("SourceRef", {})
    table = source.get("Entity") or aliases.get(source.get("Source"))
    if not model.has(kind, table, reference.get("Property")):
        raise SourceError(f"{path}: the model has no {kind.lower()} {reference.get('Property')} in a table {table}")


def read_field(path: Path, node: Document, what: str) -> Field:
    """The column or measure that a projection or a sort order names. Raises SourceError for anything else."""
    try:
        return to_field(node)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"{path}: {what} is neither a column nor a measure of a table") from error


def check_projection(path: Path, projection: Document) -> str:
    """The name of the field that a visual shows."""
    reference = projection["queryRef"]
    field = read_field(path, projection, reference)
    if reference != field.column:
        raise SourceError(f"{path}: the queryRef {reference} is not that of its field, {field.column}")
    return reference
