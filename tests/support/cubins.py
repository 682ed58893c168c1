"""What a compiled program says of its kernels: names, and the local memory of each."""

import struct
from typing import NamedTuple

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_FRAME_SIZE = 0x11
_SIZED = 0x04
"""An attribute with a payload of its own length."""


class Section(NamedTuple):
    """One section of an ELF file."""

    name: str
    content: bytes


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
    found = {one.name: one.content for one in sections(cubin)}
    symbols, texts = found[".symtab"], found[".strtab"]
    names = [
        texts[symbol[0] :].split(b"\0", 1)[0].decode() for symbol in _SYMBOL.iter_unpack(symbols)
    ]
    return {
        names[function]: frame
        for attribute, payload in _attributes(found[".nv.info"])
        if attribute == _FRAME_SIZE
        for function, frame in (struct.unpack("<II", payload),)
    }


def _attributes(info: bytes):
    place = 0
    while place < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, place)
        payload = info[place + 4 : place + 4 + size] if form == _SIZED else b""
        yield attribute, payload
        place += 4 + len(payload)
