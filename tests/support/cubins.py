"""What a compiled program says of its kernels: registers, local memory, and their instructions.

Nothing but the ELF file is read. Instructions are those of compute capability 7.0 and later: two
words of 64 bits, of which the lowest 12 bits are the operation.
"""

import struct
from typing import NamedTuple

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_FRAME_SIZE = 0x11
_REGISTERS = 0x2F
_SIZED = 0x04
"""An attribute with a payload of its own length."""

BRANCH = 0x947
LOADS = {0x981: "global", 0x980: "generic", 0x983: "local"}
STORES = {0x986: "global", 0x985: "generic", 0x385: "generic", 0x387: "local"}
ATOMICS = {0x98E: "global", 0x9A6: "global", 0x38A: "generic", 0x98A: "generic"}


class Section(NamedTuple):
    """One section of an ELF file."""

    name: str
    content: bytes


class Loop(NamedTuple):
    """Instructions that a branch back repeats, all of them counted wherever branches lead."""

    instructions: int
    loads: int
    """Of them from global memory."""


def sections(cubin: bytes) -> list[Section]:
    """All sections of an ELF file, in order."""
    start = struct.unpack_from("<Q", cubin, 40)[0]
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    headers = [_SECTION.unpack_from(cubin, start + size * place) for place in range(count)]
    texts = cubin[headers[names][4] :]
    return [
        Section(
            texts[header[0] :].split(b"\0", 1)[0].decode(), cubin[header[4] : header[4] + header[5]]
        )
        for header in headers
    ]


def stack_frames(cubin: bytes) -> dict[str, int]:
    """Bytes of local memory that a thread of each function takes: spilled registers, or arrays."""
    return _numbers(cubin, _FRAME_SIZE)


def registers(cubin: bytes) -> dict[str, int]:
    """Registers of a thread of each kernel."""
    return _numbers(cubin, _REGISTERS)


def operations(cubin: bytes, kernel: str) -> list[int]:
    """The operation of every instruction of a kernel."""
    return [word & 0xFFF for word, _ in _words(cubin, kernel)]


def innermost_loops(cubin: bytes, kernel: str) -> list[Loop]:
    """Loops that hold no other, in the order of the code."""
    words = _words(cubin, kernel)
    bounds = []
    for place, (low, high) in enumerate(words):
        if low & 0xFFF != BRANCH:
            continue
        target = place + 1 + _distance_bytes(low, high) // 16
        if target < place:
            bounds.append((target, place))
    return [
        Loop(
            last - first + 1,
            sum(LOADS.get(low & 0xFFF) == "global" for low, _ in words[first : last + 1]),
        )
        for first, last in bounds
        if not any((first, last) != one and first <= one[0] and one[1] <= last for one in bounds)
    ]


def _words(cubin: bytes, kernel: str) -> list[tuple[int, int]]:
    code = next(one.content for one in sections(cubin) if one.name == f".text.{kernel}")
    return list(struct.iter_unpack("<QQ", code))


def _distance_bytes(low: int, high: int) -> int:
    """How far a branch leads from the instruction behind it: words of four bytes, signed."""
    words = (low >> 16 & 0xFF) | (low >> 34) << 8 | (high & 0x3FFFF) << 38
    return 4 * (words - (words >> 55 << 56))


def _numbers(cubin: bytes, wanted: int) -> dict[str, int]:
    """An attribute that every function has."""
    found = {one.name: one.content for one in sections(cubin)}
    symbols, texts = found[".symtab"], found[".strtab"]
    names = [
        texts[symbol[0] :].split(b"\0", 1)[0].decode() for symbol in _SYMBOL.iter_unpack(symbols)
    ]
    return {
        names[function]: number
        for attribute, payload in _attributes(found[".nv.info"])
        if attribute == wanted
        for function, number in (struct.unpack("<II", payload),)
    }


def _attributes(info: bytes):
    place = 0
    while place < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, place)
        payload = info[place + 4 : place + 4 + size] if form == _SIZED else b""
        yield attribute, payload
        place += 4 + len(payload)
