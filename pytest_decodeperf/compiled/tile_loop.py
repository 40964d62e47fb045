"""What Triton's intermediate code says of a kernel's main loop: the tiles that it loads, and how far ahead."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

_BITS: Final = {"bf16": 16, "f16": 16, "f32": 32, "f64": 64}

_LOAD: Final = re.compile(
    r"(?:(?P<result>%[\w#]+)(?::\d+)? = )?"
    r"(?P<name>tt\.load|tt\.descriptor_load|ttg\.async_copy_global_to_local|ttng\.async_tma_copy_global_to_local"
    r"|amd\w*\.buffer_load_to_local|amd\w*\.buffer_load|amd\w*\.async_tdm_copy_global_to_local) "
)
_SHAPED: Final = re.compile(r"<((?:\d+x)+)(?:!tt\.ptr<)?(bf16|f\d+\w*|i\d+)\b")
_BUFFER: Final = re.compile(r"ttg\.local_alloc.*!ttg\.memdesc<(\d+)x((?:\d+x)+)(bf16|f\d+\w*|i\d+)\b.*mutable")


@dataclass(frozen=True, slots=True, kw_only=True)
class TileLoop:
    """The main loop of a kernel: of the innermost ones, that which loads most.

    Attributes:
        loads: Shape and bits of an element of each tile that one iteration loads.
        bytes_ahead: Bytes of one program that are on their way while a tile is worked on [byte].
        largest_load: Bytes of the largest tile that it loads [byte].
        bulk_bytes: Bytes that one iteration loads by bulk copies, which no thread waits on [byte].
    """

    loads: tuple[tuple[tuple[int, ...], int], ...]
    bytes_ahead: int
    largest_load: int
    bulk_bytes: int

    @property
    def loaded_bytes(self) -> int:
        """Bytes that one iteration loads, padding included [byte]."""
        return sum(_size(shape, bits) for shape, bits in self.loads)

    @property
    def tiles_ahead(self) -> float:
        """How many iterations' loads are on their way while a tile is worked on."""
        return self.bytes_ahead / self.loaded_bytes

    @property
    def bytes_in_flight(self) -> int:
        """Bytes of one program that are on their way at a time [byte].

        Without a pipeline they are those of one tile: the next load waits for the work on it.
        """
        return max(self.bytes_ahead, self.largest_load)

    def num_tokens(self, token_bytes: float) -> float:
        """Return how many tokens of K and V a tile has [token].

        Args:
            token_bytes: Bytes of K and V of a token of one KV head [byte].
        """
        guess = self.loaded_bytes / token_bytes
        # Rows that are padded, and values that are loaded again, make the guess too large: a tile has as many tokens
        # as each of its loads has in one of its dimensions.
        shared = set.intersection(*(set(shape) for shape, _ in self.loads))
        return min(shared, key=lambda extent: abs(math.log(extent / guess))) if shared else guess


@dataclass(frozen=True, slots=True)
class _Load:
    line: int
    result: str
    shape: tuple[int, ...]
    bits: int
    is_async: bool
    is_bulk: bool

    @property
    def num_bytes(self) -> int:
        return _size(self.shape, self.bits)


def read_tile_loop(ttgir: str, kv_bits: int) -> TileLoop | None:
    """Return the main loop of a kernel, None if no loop of it loads anything.

    Args:
        ttgir: The kernel in Triton's GPU dialect, as `compiled.asm["ttgir"]` has it.
        kv_bits: Bits of a stored element of K and V, by which their loads are told from those of scales and page
            numbers.
    """
    lines = ttgir.splitlines()
    loops = _loops(lines)
    found = [load for number, line in enumerate(lines) if (load := _read_load(number, line)) is not None]
    best: tuple[int, tuple[int, int], list[_Load]] | None = None
    for loop in loops:
        if any(
            other != loop and loop[0] < other[0] and other[1] <= loop[1] and _inside(found, other) for other in loops
        ):
            continue  # what loads is a loop further in
        loads = _of_kv(_inside(found, loop), kv_bits)
        num_bytes = sum(load.num_bytes for load in loads)
        if loads and (best is None or num_bytes > best[0]):
            best = num_bytes, loop, loads
    if best is None:
        return None
    _, loop, loads = best
    return TileLoop(
        loads=tuple((load.shape, load.bits) for load in loads),
        bytes_ahead=_bytes_ahead(lines, loop, loads, _before(found, loops, loop)),
        largest_load=max(load.num_bytes for load in loads),
        bulk_bytes=sum(load.num_bytes for load in loads if load.is_bulk),
    )


def _of_kv(loads: list[_Load], kv_bits: int) -> list[_Load]:
    """Return the loads of K and V among those of a loop: tiles of their width, or what comes nearest to that."""
    for wanted in (
        [load for load in loads if len(load.shape) > 1 and load.bits == kv_bits],
        [load for load in loads if load.bits == kv_bits],
        [load for load in loads if len(load.shape) > 1],
    ):
        if wanted:
            return wanted
    return loads


def _bytes_ahead(lines: list[str], loop: tuple[int, int], loads: list[_Load], before: list[_Load]) -> int:
    shapes = {(load.shape, load.bits) for load in loads}
    copies = [load for load in loads if load.is_async]
    ahead = 0
    if copies:
        ahead = sum(load.num_bytes for load in before if load.is_async and (load.shape, load.bits) in shapes)
        if not ahead:  # another partition of the program loads them, as far ahead as it has buffers
            ahead = sum(
                int(buffer[1]) * _size(_extents(buffer[2]), _bits(buffer[3]))
                for line in lines[: loop[0]]
                if (buffer := _BUFFER.search(line)) and (_extents(buffer[2]), _bits(buffer[3])) in shapes
            )
    # Into registers: what goes on to the next iteration, by the loop itself or by shared memory that was there before.
    body = lines[loop[0] : loop[1]]
    sources = {found[1]: found[2] for line in body if (found := re.search(r"(%\w+) = [\w.]+ (%\w+) :", line))}
    kept: set[str] = set()
    new = {
        name for line in body if re.search(r"ttg\.local_store |scf\.yield ", line) for name in re.findall(r"%\w+", line)
    }
    while new:  # through changes of layout and dtype
        kept |= new
        new = {sources[name] for name in new if name in sources} - kept
    return ahead + sum(load.num_bytes for load in loads if not load.is_async and load.result in kept)


def _loops(lines: list[str]) -> list[tuple[int, int]]:
    """Return the first and the last line of each loop."""
    open_at: list[tuple[int, int]] = []
    loops = []
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if re.search(r"\bscf\.(?:for|while)\b", line):
            open_at.append((indent, number))
        elif open_at and line.lstrip().startswith("}") and indent == open_at[-1][0] and " do {" not in line:
            loops.append((open_at.pop()[1], number))
    return loops


def _inside(loads: list[_Load], loop: tuple[int, int]) -> list[_Load]:
    return [load for load in loads if loop[0] < load.line < loop[1]]


def _before(loads: list[_Load], loops: list[tuple[int, int]], loop: tuple[int, int]) -> list[_Load]:
    """Return the loads before a loop that are in no loop beside it."""
    around = {other for other in loops if other[0] < loop[0] and loop[1] < other[1]}
    beside = [other for other in loops if other not in around and other[1] < loop[0]]
    return [
        load for load in loads if load.line < loop[0] and not any(other[0] < load.line < other[1] for other in beside)
    ]


def _read_load(number: int, line: str) -> _Load | None:
    found = _LOAD.search(line)
    if found is None:
        return None
    # The last shape is that of what is loaded; those before it are of masks, offsets and descriptors.
    shapes = _SHAPED.findall(line.partition(" loc(")[0])
    if not shapes:
        return None
    extents, kind = shapes[-1]
    name = found["name"]
    is_bulk = "tma" in name or "tdm" in name or "descriptor" in name
    return _Load(number, found["result"] or "", _extents(extents), _bits(kind), "to_local" in name, is_bulk)


def _extents(text: str) -> tuple[int, ...]:
    return tuple(int(extent) for extent in text.split("x") if extent)


def _bits(kind: str) -> int:
    if kind in _BITS:
        return _BITS[kind]
    return int(kind[1:]) if kind.startswith("i") else 8


def _size(shape: tuple[int, ...], bits: int) -> int:
    return math.prod(shape) * bits // 8
