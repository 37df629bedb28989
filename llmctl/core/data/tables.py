"""Tables: the rows of CSV and TSV, with a first line that names the columns or without, and quotes that are letters."""

import csv
from collections.abc import Collection, Iterable, Iterator


class Table:
    """The rows of a table.

    The first line names the columns, unless columns are wanted by number, from 1, and none by a name that is there:
    then it is a row like any other. What looks like a number in it is no name, but a label of the first row; except
    where it is nothing but numbers in their order, as pandas names columns. Beside names, a number stands for the
    column of that number.

    In TSV many write quotes as they are, others around fields as CSV has them. So a quote that opens a field counts
    as one around it only where it is closed in the line, or where the line would else have too few columns.

    Args:
        lines: of the file, with their ends.
        tabs: it is TSV.
        wanted: names or numbers of columns that will be asked for.

    Attributes:
        names: of the columns, and numbers that are wanted beside them.
        line: of the file, from 1, where the last row ended.
    """

    def __init__(self, lines: Iterable[str], tabs: bool, wanted: Collection[str] = ()):
        self._rows = csv.reader(_mended(lines) if tabs else lines, delimiter="\t" if tabs else ",")
        self._first = next(self._rows, [])
        self._columns = len(self._first)
        places = [str(place) for place in range(1, self._columns + 1)]
        numbers = dict.fromkeys(name for name in wanted if name in places)
        named = any(name in self._first and name not in places for name in wanted)
        counted = self._first in (places, [str(place) for place in range(self._columns)])
        self._headless = bool(numbers) and not named and not counted
        self.names = places if self._headless else self._first + [name for name in numbers if name not in self._first]

    @property
    def line(self) -> int:
        return self._rows.line_num

    def __iter__(self) -> Iterator[tuple[dict[str, str | None], int]]:
        """Each row by the names of its columns, None where it ends before; and how many cells it has besides."""
        if self._headless:
            yield self._named(self._first)
        for row in self._rows:
            if row:
                yield self._named(row)

    def _named(self, row: list[str]) -> tuple[dict[str, str | None], int]:
        cells: list[str | None] = [*row[: self._columns], *[None] * (self._columns - len(row))]
        cells += [cells[int(name) - 1] for name in self.names[self._columns :]]
        return dict(zip(self.names, cells, strict=True)), sum(map(bool, row[self._columns :]))


def _mended(lines: Iterable[str]) -> Iterator[str]:
    """Lines of TSV, quoted anew where a quote in them is a letter like any other."""
    columns, inside = 0, False
    for line in lines:
        fields = line.rstrip("\r\n").split("\t")
        columns = columns or len(fields)
        if inside:
            inside = line.count('"') % 2 == 0
        elif '"' in line and not _sound(line):
            inside = len(fields) != columns  # a field that goes on over lines
            if not inside:
                end = line[len("\t".join(fields)) :]
                line = "\t".join('"' + field.replace('"', '""') + '"' for field in fields) + end
        yield line


def _sound(line: str) -> bool:
    """Whether every quote that opens a field is closed where it ends."""
    try:
        return bool(list(csv.reader([line], delimiter="\t", strict=True)))
    except csv.Error:
        return False
