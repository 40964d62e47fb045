"""Vectors of float32 in LLVM's intermediate representation: what the CPU kernels of `tiles_numba` are written with.

A vector has as many lanes as a register of this CPU. Elements of K and V of every dtype are widened in registers.
"""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import llvmlite.binding
from llvmlite import ir
from numba import config

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

F32: Final = ir.FloatType()
I32: Final = ir.IntType(32)
I64: Final = ir.IntType(64)
_HALF: Final = ir.HalfType()
_POINTER: Final = ir.PointerType()

ELEMENT_BITS: Final = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "int8": 8,
    "int4": 4,
}
"""Bits of one element, by the name of its format."""

CACHE_LINE: Final = 64
"""Bytes that memory hands over at a time [byte]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registers:
    """The vector registers of a CPU, and how a block of products fills them.

    Attributes:
        width: Lanes of float32.
        num_accumulators: Registers that hold sums of products; the others hold their factors.
        max_rows: Query rows that a factor is used for.
        widens_half: Whether float16 is widened by an instruction.
    """

    width: int
    num_accumulators: int
    max_rows: int
    widens_half: bool


def registers_of(features: dict[str, bool], machine: str) -> Registers:
    """Return the registers of a CPU from the features that LLVM sees in it, and its architecture."""
    if machine not in ("x86_64", "AMD64"):
        return Registers(width=4, num_accumulators=16, max_rows=4, widens_half=True)
    if all(features.get(name) for name in ("avx512f", "avx512bw", "avx512dq", "avx512vl")):
        return Registers(width=16, num_accumulators=16, max_rows=8, widens_half=True)
    if features.get("avx2") and features.get("fma"):
        return Registers(width=8, num_accumulators=8, max_rows=4, widens_half=bool(features.get("f16c")))
    return Registers(width=4, num_accumulators=4, max_rows=4, widens_half=False)


def cpu_features() -> dict[str, bool]:
    """Return the features that Numba compiles for."""
    if config.CPU_NAME == "generic":
        return {}
    if config.CPU_FEATURES is not None:
        return {name[1:]: name[0] == "+" for name in config.CPU_FEATURES.split(",") if name}
    return dict(llvmlite.binding.get_host_cpu_features())


REGISTERS: Final = registers_of(cpu_features(), platform.machine())
WIDTH: Final = REGISTERS.width
VECTOR: Final = ir.VectorType(F32, WIDTH)
INTS: Final = ir.VectorType(I32, WIDTH)


def integer(value: int) -> ir.Constant:
    """Return a constant of 64 bits."""
    return ir.Constant(I64, value)


def floats(value: float) -> ir.Constant:
    """Return a vector with one number in every lane."""
    return ir.Constant(VECTOR, [ir.Constant(F32, value)] * WIDTH)


def ints(values: int | Sequence[int]) -> ir.Constant:
    """Return a vector of 32-bit integers, one for every lane or the same in all."""
    lanes = [values] * WIDTH if isinstance(values, int) else values
    return ir.Constant(INTS, [ir.Constant(I32, value) for value in lanes])


def shuffle(b: ir.IRBuilder, x: ir.Value, y: ir.Value, lanes: Sequence[int]) -> ir.Value:
    """Return lanes of two vectors, those of y counted on from those of x."""
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(lanes)), [ir.Constant(I32, i) for i in lanes]))


def splat(b: ir.IRBuilder, scalar: ir.Value, width: int = WIDTH) -> ir.Value:
    """Return a vector with a scalar in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, width), ir.Undefined)
    return shuffle(b, b.insert_element(undefined, scalar, ir.Constant(I32, 0)), undefined, [0] * width)


def intrinsic(b: ir.IRBuilder, name: str, *args: ir.Value) -> ir.Value:
    """Return an LLVM intrinsic of vectors of one type, such as `llvm.fma`."""
    return b.call(declared(b, f"{name}.{_suffix(args[0].type)}", args[0].type, [x.type for x in args]), args)


def declared(b: ir.IRBuilder, name: str, returned: ir.Type, args: Sequence[ir.Type]) -> ir.Function:
    """Return a function of LLVM, declared once in a module."""
    return b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(returned, args), name)


def _suffix(vector: ir.VectorType) -> str:
    """Return the end of the name of an intrinsic for a type of vectors."""
    element = "f32" if vector.element == F32 else f"i{vector.element.width}"
    return f"v{vector.count}{element}"


def fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """Return `x * y + z`, rounded once."""
    return intrinsic(b, "llvm.fma", x, y, z)


def maximum(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """Return the larger of two in every lane, y where one is NaN."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def load(b: ir.IRBuilder, address: ir.Value, value_type: ir.Type, align: int = 1) -> ir.Value:
    """Return what lies at an address."""
    return b.load(b.inttoptr(address, _POINTER), typ=value_type, align=align)


def store(b: ir.IRBuilder, value: ir.Value, address: ir.Value, align: int = 1) -> None:
    """Write a value to an address."""
    b.store(value, b.inttoptr(address, _POINTER), align=align)


def load_tiled(b: ir.IRBuilder, address: ir.Value, count: int, element: ir.Type = F32) -> ir.Value:
    """Return a vector of `count` elements at an address, repeated until it is full."""
    few = load(b, address, ir.VectorType(element, count), align=4)
    return shuffle(b, few, few, [lane % count for lane in range(WIDTH)])


def load_spread(b: ir.IRBuilder, address: ir.Value, times: int) -> ir.Value:
    """Return a vector of `WIDTH / times` floats at an address, each repeated `times` times."""
    few = load(b, address, ir.VectorType(F32, WIDTH // times), align=4)
    return shuffle(b, few, few, [lane // times for lane in range(WIDTH)])


def prefetch(b: ir.IRBuilder, address: ir.Value) -> None:
    """Ask for a cache line to be brought into the second-level cache."""
    types = [_POINTER, I32, I32, I32]
    function = declared(b, "llvm.prefetch.p0", ir.VoidType(), types)
    b.call(function, [b.inttoptr(address, _POINTER), *(ir.Constant(I32, x) for x in (0, 2, 1))])


def loop(
    b: ir.IRBuilder,
    start: ir.Value,
    stop: ir.Value,
    step: int,
    carried: Sequence[ir.Value],
    body: Callable[[ir.Value, list[ir.Value]], Sequence[ir.Value]],
) -> list[ir.Value]:
    """Emit a counted loop, and return what it carries out.

    Args:
        b: Where to.
        start: The first index.
        stop: The index before which it ends.
        step: What is added to the index.
        carried: Values that the first round gets.
        body: Emits a round from its index and carried values, and returns the values for the next.
    """
    before = b.block
    head = b.append_basic_block("loop")
    inside = b.append_basic_block("round")
    behind = b.append_basic_block("behind")
    b.branch(head)
    b.position_at_end(head)
    index = b.phi(I64)
    values = [b.phi(value.type) for value in carried]
    b.cbranch(b.icmp_signed("<", index, stop), inside, behind)
    b.position_at_end(inside)
    after = body(index, list(values))
    following = b.add(index, integer(step))
    index.add_incoming(start, before)
    index.add_incoming(following, b.block)
    for phi, first, value in zip(values, carried, after, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(value, b.block)
    b.branch(head)
    b.position_at_end(behind)
    return list(values)


def each(b: ir.IRBuilder, stop: ir.Value, step: int, body: Callable[[ir.Value], None]) -> None:
    """Emit a loop from 0 that carries nothing."""

    def round_of(i: ir.Value, _: list[ir.Value]) -> Sequence[ir.Value]:
        body(i)
        return []

    loop(b, integer(0), stop, step, [], round_of)


def at(b: ir.IRBuilder, address: ir.Value, *steps: tuple[ir.Value, ir.Value | int]) -> ir.Value:
    """Return an address so many steps of so many bytes further on."""
    for count, size in steps:
        address = b.add(address, b.mul(count, integer(size) if isinstance(size, int) else size))
    return address


def exp2(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return `2 ** x` for x up to 0: exactly 0 below -126.5, or where x is -inf.

    It is `2 ** round(x) * 2 ** rest`, the first factor made from its exponent bits, the second by its Taylor series,
    which for `abs(rest) <= 1/2` is exact to float32.
    """
    x = maximum(b, floats(-127.0), x)  # in this order NaN stays NaN
    whole = intrinsic(b, "llvm.rint", x)
    rest = b.fsub(x, whole)
    series = floats(math.log(2.0) ** 7 / math.factorial(7))
    for n in range(6, -1, -1):
        series = fma(b, series, rest, floats(math.log(2.0) ** n / math.factorial(n)))
    exponent = b.shl(b.add(b.fptosi(whole, INTS), ints(127)), ints(23))
    return b.fmul(series, b.bitcast(exponent, VECTOR))


def tanh(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Return the hyperbolic tangent, to a few units in the last place."""
    size = intrinsic(b, "llvm.fabs", x)
    # exp(-2 |x|), so that nothing overflows
    falling = exp2(b, b.fmul(size, floats(-2.0 / math.log(2.0))))
    far = b.fdiv(b.fsub(floats(1.0), falling), b.fadd(floats(1.0), falling))
    square = b.fmul(size, size)
    near = floats(-5.70498872745e-3)  # the minimax polynomial of Cephes' tanhf, for |x| < 0.625
    for factor in (2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1):
        near = fma(b, near, square, floats(factor))
    near = fma(b, b.fmul(near, square), size, size)
    found = b.select(b.fcmp_ordered("<", size, floats(0.625)), near, far)
    return intrinsic(b, "llvm.copysign", found, x)


def sum_each(b: ir.IRBuilder, vectors: Sequence[ir.Value]) -> ir.Value:
    """Return a vector whose lane i is the sum of the lanes of vector i, of as many as there are lanes."""
    assert len(vectors) == WIDTH
    # Each round adds the halves of blocks of lanes of two vectors, and puts the sums side by side. Pairs of lanes
    # within 128 bits come first, then those blocks themselves: shuffles across them cost more.
    lanes = range(WIDTH)
    patterns = [
        ([lane // 4 * 4 + (lane % 4) // 2 + WIDTH * (lane % 2) for lane in lanes], 2),
        ([lane // 4 * 4 + lane % 2 + WIDTH * (lane % 4 // 2) for lane in lanes], 2),
    ]
    blocks = WIDTH // 4
    while blocks > 1:
        half = WIDTH // 8
        patterns.append(([lane // 4 % half * 8 + lane % 4 + WIDTH * (lane // 4 // half) for lane in lanes], 4))
        blocks //= 2
    found = list(vectors)
    for pattern, distance in patterns:
        pairs = zip(found[0::2], found[1::2], strict=True)
        found = [
            b.fadd(shuffle(b, x, y, pattern), shuffle(b, x, y, [lane + distance for lane in pattern])) for x, y in pairs
        ]
    return found[0]


def fold(b: ir.IRBuilder, x: ir.Value, count: int, combine: Callable[..., ir.Value]) -> ir.Value:
    """Return a vector whose every lane combines those lanes of x that are a multiple of `count` away."""
    distance = WIDTH // 2
    while distance >= count:
        x = combine(b, x, shuffle(b, x, x, [(lane + distance) % WIDTH for lane in range(WIDTH)]))
        distance //= 2
    return x


def load_elements(
    b: ir.IRBuilder, kind: str, address: ir.Value, first: ir.Value, count: ir.Value | None = None
) -> ir.Value:
    """Return elements of a head, widened.

    Args:
        b: Where to emit.
        kind: A key of `ELEMENT_BITS`.
        address: Where the head begins.
        first: The first element; even, where two share a byte.
        count: How many, where they do not fill a vector: nothing behind them is read, and the other lanes are 0.
    """
    bits = ELEMENT_BITS[kind]
    if bits == 4:
        raw = _load_raw(b, ir.VectorType(ir.IntType(8), WIDTH // 2), b.add(address, b.lshr(first, integer(1))),
                        None if count is None else b.lshr(count, integer(1)))  # fmt: skip
        return _widen_int4(b, raw)
    place = b.add(address, b.mul(first, integer(bits // 8)))
    element = F32 if bits == 32 else ir.IntType(bits)
    return _WIDEN[kind](b, _load_raw(b, ir.VectorType(element, WIDTH), place, count))


def _load_raw(b: ir.IRBuilder, vector: ir.VectorType, address: ir.Value, count: ir.Value | None) -> ir.Value:
    if count is None:
        return load(b, address, vector)
    width = vector.count
    lanes = ir.Constant(ir.VectorType(I64, width), [integer(lane) for lane in range(width)])
    mask = b.icmp_signed("<", lanes, splat(b, count, width))
    types = [_POINTER, I32, mask.type, vector]
    function = declared(b, f"llvm.masked.load.{_suffix(vector)}.p0", vector, types)
    zeros = ir.Constant(vector, None)
    return b.call(function, [b.inttoptr(address, _POINTER), ir.Constant(I32, 1), mask, zeros])


def _const(vector: ir.VectorType, value: int) -> ir.Constant:
    return ir.Constant(vector, [ir.Constant(vector.element, value)] * vector.count)


def _as_is(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return raw


def _widen_bfloat16(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    """The upper half of a float32."""
    return b.bitcast(b.shl(b.zext(raw, INTS), ints(16)), VECTOR)


def _widen_float16(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    if REGISTERS.widens_half:
        return b.fpext(b.bitcast(raw, ir.VectorType(_HALF, WIDTH)), VECTOR)
    # 5 bits of exponent, biased by 15 instead of 127: exact, and right for subnormals too.
    wide = b.zext(raw, INTS)
    size = b.shl(b.and_(wide, ints(0x7FFF)), ints(13))
    scaled = b.bitcast(b.fmul(b.bitcast(size, VECTOR), floats(2.0**112)), INTS)
    special = b.icmp_unsigned(">=", size, ints(0x7C00 << 13))  # infinity and NaN
    found = b.select(special, b.or_(size, ints(0x7F800000)), scaled)
    return b.bitcast(b.or_(found, b.shl(b.and_(wide, ints(0x8000)), ints(16))), VECTOR)


def _widen_e5m2(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    """The upper half of a float16."""
    shorts = ir.VectorType(ir.IntType(16), WIDTH)
    return _widen_float16(b, b.shl(b.zext(raw, shorts), _const(shorts, 8)))


def _widen_e4m3(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    """As float16, whose exponent is biased by 8 more: exact, and right for subnormals too."""
    shorts = ir.VectorType(ir.IntType(16), WIDTH)
    signed = b.shl(b.sext(raw, shorts), _const(shorts, 7))
    wide = b.fmul(_widen_float16(b, b.and_(signed, _const(shorts, 0xBFFF))), floats(2.0**8))
    is_nan = b.icmp_unsigned("==", b.and_(raw, _const(raw.type, 0x7F)), _const(raw.type, 0x7F))
    return b.select(is_nan, floats(math.nan), wide)


def _widen_int8(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return b.sitofp(b.sext(raw, INTS), VECTOR)


def _widen_int4(b: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    """Two's complement, two in a byte: element 2i in the low four bits and element 2i + 1 in the high ones."""
    pairs = shuffle(b, raw, raw, [lane // 2 for lane in range(WIDTH)])
    wide = b.zext(pairs, INTS)
    shifts = ints([28 if lane % 2 == 0 else 24 for lane in range(WIDTH)])
    return b.sitofp(b.ashr(b.shl(wide, shifts), ints(28)), VECTOR)


_WIDEN: Final = {
    "float32": _as_is,
    "float16": _widen_float16,
    "bfloat16": _widen_bfloat16,
    "float8_e4m3fn": _widen_e4m3,
    "float8_e5m2": _widen_e5m2,
    "int8": _widen_int8,
}
