"""Text files and tables (CSV, TSV) as users save them: any byte-order mark, any line end; what is unclear is refused.

Errors name the file and the line.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.errors import BenchError

MARKS = (  # the longer ones first: that of UTF-32 begins like that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
DELIMITERS = (",", ";", "\t")

Row = Mapping[str, str]


def text_of(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark. Raises BenchError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BenchError(f"{path} cannot be read ({error.strerror}); correct the path.") from error
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BenchError(f"line {line} of {path} is not {encoding.upper()} text; save it as UTF-8.") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise BenchError(f"line {line} of {path} holds a zero byte, it is no UTF-8 text; save it as UTF-8.")
    return text


def lines_of(path: Path, what: str = "prompt") -> list[str]:
    """The lines that are not blank, without white space at their ends. Raises BenchError when there is none."""
    lines = [line.strip() for line in text_of(path).splitlines()]
    if not any(lines):
        raise BenchError(f"{path} holds no {what}; write one line for each.")
    return [line for line in lines if line]


def header_of(path: Path) -> list[str]:
    """Names of the columns of a table, in lower case, whatever divides them."""
    text = text_of(path)
    return [name.casefold() for name in max((_header(text, delimiter, ()) for delimiter in DELIMITERS), key=len)]


def rows_of(path: Path, columns: Sequence[str]) -> list[tuple[int, Row]]:
    """Rows of a table with the number of their line; the named columns are there and not blank in each.

    Commas, semicolons or tabs divide a .csv, tabs a .tsv. Blank rows are left out. Raises BenchError.
    """
    text = text_of(path)
    delimiters = ("\t",) if path.suffix.lower() == ".tsv" else DELIMITERS
    headers = {delimiter: _header(text, delimiter, columns) for delimiter in delimiters}
    whole = [delimiter for delimiter in delimiters if set(columns) <= set(headers[delimiter])]
    delimiter = whole[0] if whole else delimiters[0]
    header = headers[delimiter]
    for column in columns:
        if header.count(column) != 1:
            found = f"no column {column!r}, only" if column not in header else f"several columns {column!r}:"
            raise BenchError(f"{path} has {found} {', '.join(header)}.")
    return [
        (line, _row(header, fields, columns, f"line {line} of {path}")) for line, fields in _rows(text, delimiter, path)
    ]


def _header(text: str, delimiter: str, columns: Sequence[str]) -> list[str]:
    """Names of the columns, those asked for in the capitals that they were asked in."""
    try:
        names = next((row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(row)), [])
    except csv.Error:
        return []
    names = [name.strip() for name in names]
    wanted = {column.casefold(): column for column in columns if column not in names}
    return [wanted.get(name.casefold(), name) for name in names]


def _rows(text: str, delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Fields of each row that is not blank, without the header, and the line on which the row begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    begins, header = 1, True
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                if not header:
                    yield begins, fields
                header = False
            begins = reader.line_num + 1
    except csv.Error as error:
        raise BenchError(
            f"line {reader.line_num} of {path} cannot be read as a table ({error}); correct it."
        ) from error


def _row(header: Sequence[str], fields: Sequence[str], columns: Sequence[str], place: str) -> Row:
    """One row by column. Raises BenchError."""
    if any(field.strip() for field in fields[len(header) :]):
        raise BenchError(
            f"{place} has {len(fields)} fields and the header {len(header)}; put a text that holds the delimiter in "
            "quotation marks."
        )
    if any("\n" in field or "\r" in field for field in fields):
        raise BenchError(f"{place} has a field of several lines; close its quotation mark, or write it on one line.")
    row = dict.fromkeys(header, "") | dict(zip(header, fields, strict=False))
    for column in columns:
        if not row[column].strip():
            raise BenchError(f"{place} has no {column}; fill it in or delete the row.")
    return row
