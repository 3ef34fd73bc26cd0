"""Parquet files of events that are wrong in one way each: numbers, columns, types, metadata, footers, bytes."""

import io
import random
import struct
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NUMBERS = (float("nan"), float("inf"), float("-inf"), -1.0, 0.0, 3e38, 1e-38)
PRIMARY_TYPE, MUONS_TYPE = pa.list_(pa.float32()), pa.list_(pa.list_(pa.float32()))
JSON = (b"", b"null", b"[", b"{}", b"[1]", b'[{"name": 1}]', b"\xff", b"[" * 100_000)
FLIPS = 12  # Of each kind.


def variants(sound: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield what is wrong, and the content, of files made from a sound one."""
    table = pq.read_table(io.BytesIO(sound)).replace_schema_metadata(None)
    yield from ((name, _written(wrong)) for name, wrong in _tables(table))
    yield from _bytes(_written(table, compression="none"), table.num_rows)
    yield from _flips(_written(table, write_page_checksum=True))


def _written(table: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def _tables(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    rows, number = range(table.num_rows), table.num_rows
    primaries, muons = table["primary"].to_pylist(), table["muons"].to_pylist()

    def with_column(name: str, values: Any, kind: pa.DataType | None = None) -> pa.Table:
        column = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, kind)
        return table.set_column(table.column_names.index(name), name, column)

    def changed(row: list[float], at: int, value: float) -> list[float]:
        return [*row[:at], value, *row[at + 1 :]]

    for at, value in ((at, value) for at in range(4) for value in NUMBERS):
        for which in (rows, range(5, 6)):
            wrong = [changed(row, at, value) if number in which else row for number, row in enumerate(primaries)]
            yield f"primary {at} = {value} in {len(which)} rows", with_column("primary", wrong, PRIMARY_TYPE)
    for at, value in ((at, value) for at in range(3) for value in NUMBERS):
        for which in (rows, range(5, 6)):
            wrong_muons = [
                [changed(muon, at, value) for muon in row] if number in which else row
                for number, row in enumerate(muons)
            ]
            yield f"muon {at} = {value} in {len(which)} rows", with_column("muons", wrong_muons, MUONS_TYPE)
    yield "no rows", table.slice(0, 0)
    yield "one row", table.slice(0, 1)
    yield "no muons", with_column("muons", [[]] * number, MUONS_TYPE)
    yield "null muons", with_column("muons", [None] * number, MUONS_TYPE)
    yield "null in muons", with_column("muons", [[None]] * number, MUONS_TYPE)
    yield "null primary", with_column("primary", [None] * number, PRIMARY_TYPE)
    yield "null in primary", with_column("primary", [[None, *row[1:]] for row in primaries], PRIMARY_TYPE)
    yield "ragged primary", with_column("primary", [row[: i % 5] for i, row in enumerate(primaries)], PRIMARY_TYPE)
    ragged = [[muon[: i % 4] for muon in row] for i, row in enumerate(muons)]
    yield "ragged muons", with_column("muons", ragged, MUONS_TYPE)
    yield "wide muons", with_column("muons", [[[*muon, 1.0] for muon in row] for row in muons], MUONS_TYPE)
    for values in ([-1] * number, ["1"] * number, [1.5] * number, [None] * number, [1] * number):
        yield f"ids {values[0]!r}", with_column("primary_major_id", values)
    huge = pa.list_(pa.float64())
    yield "beyond float32", with_column("primary", [[1e300, *row[1:]] for row in primaries], huge)
    for name in table.column_names:
        yield f"no {name}", table.drop_columns([name])
        yield f"two {name}", table.append_column(name, table[name])
        yield f"upper {name}", table.rename_columns([x.upper() if x == name else x for x in table.column_names])
        for value in ("x", True, {"a": 1}, b"\xff", [["x"]]):
            yield f"{name} of {value!r}", with_column(name, [value] * number)
    yield "5000 columns", pa.table({f"c{i}": [1] for i in range(5000)})
    yield "no columns", pa.table({})
    for name in ("x" * 10**6, "\x1b[2J", ""):
        yield f"a column {name[:5]!r}", table.append_column(name, pa.nulls(number))
        yield f"primary is {name[:5]!r}", table.rename_columns([*table.column_names[:2], name, "muons"])
    for key in (b"crmuons.features", b"crmuons", b"features"):
        for content in JSON:
            yield f"{key!r} = {content[:10]!r}", table.replace_schema_metadata({key: content})


def _bytes(content: bytes, num_rows: int) -> Iterator[tuple[str, bytes]]:
    yield from (("empty", b""), ("magic", b"PAR1"), ("two magics", b"PAR1PAR1"), ("no footer", b"PAR1\0\0\0\0PAR1"))
    yield from ((f"cut by {cut}", content[:-cut]) for cut in (1, 4, 8, 20, 100, len(content) // 2, len(content) - 4))
    yield from (
        (f"footer of {size}", content[:-8] + struct.pack("<I", size) + b"PAR1") for size in (0, 2**31 - 1, 2**32 - 1)
    )
    yield "encrypted", content[:-4] + b"PARE"
    yield "a line more", content + b"\n"
    yield "a byte before", b"\0" + content
    # A footer states the number of rows for the file, for each row group and for each column: as a zigzag varint.
    footer = len(content) - 8 - struct.unpack("<I", content[-8:-4])[0]
    stated = _varint(num_rows)
    at = content.find(stated, footer)
    while at >= 0:
        for rows in (num_rows - 1, num_rows + 1, 8000):
            yield f"{rows} rows at {at}", content[:at] + _varint(rows) + content[at + len(stated) :]
        at = content.find(stated, at + 1)


def _varint(number: int) -> bytes:
    """Return a number between 64 and 8191 as thrift writes it, in two bytes."""
    return bytes((2 * number & 0x7F | 0x80, 2 * number >> 7))


def _flips(content: bytes) -> Iterator[tuple[str, bytes]]:
    chance = random.Random(1)
    for begin, what in ((4, "anywhere"), (len(content) - 1000, "in the footer")):
        for _ in range(FLIPS):
            flipped = bytearray(content)
            at = chance.randrange(begin, len(content))
            flipped[at] ^= 1 << chance.randrange(8)
            yield f"a bit {what} at {at}", bytes(flipped)
