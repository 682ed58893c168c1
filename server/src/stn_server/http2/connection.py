"""One connection of HTTP/2 as its server sees it, without I/O: bytes in, events out.

The caller feeds `receive` with what the socket brings and sends what `output` holds. It is a server
for gRPC: no pushes, no priorities, replies with headers that use no table, and flow control that
holds every stream at 64 KiB until its call asks for more. The connection as a whole is not held:
one call that nobody reads must not stop the others.

What gRPC has no use for is left out: priorities (RFC 9113 lets servers ignore them), a table
for the headers of replies, and the comparison of `content-length` with the data, as messages bring
their lengths themselves.

Whatever a client sends, it takes a bounded part of memory: `MAX_BLOCK_BYTES` of headers under way,
64 KiB of each stream whose call asks for no more, `max_streams` streams, `MAX_ANSWERS_BYTES` of
answers that it does not read, `TURN_BYTES` of replies that it does not read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import hpack

from stn_server.http2.frames import (
    DEFAULT_WINDOW_BYTES,
    HEAD,
    HEAD_BYTES,
    LEAST_FRAME_BYTES,
    MAX_WINDOW_BYTES,
    MOST_FRAME_BYTES,
    PREFACE,
    SETTING,
    STREAM_MASK,
    UINT32,
    Code,
    ConnectionEndedError,
    Flag,
    Kind,
    Setting,
    frame,
    frame_head,
    goaway_frame,
    reset_frame,
    settings_frame,
    window_frame,
)

Headers = list[tuple[bytes, bytes]]

MAX_HEADER_BYTES = 2**14
"""The most bytes of the headers of one call, which gRPC counts as HTTP/2 does: 32 more for each."""

FRAME_BYTES = 2**18
"""The longest frame that clients may send. The parts of one that carries data are passed on as they
come, so that its length takes no memory; a longer one delays small calls on the same connection."""

MAX_BLOCK_BYTES = 2 * MAX_HEADER_BYTES
"""The most bytes of a block of headers as it is sent, the heads of its frames included: nothing but
data is kept beyond it, as everything else is read only once it is whole."""

MAX_DECODED_BYTES = 4 * MAX_HEADER_BYTES
"""The most bytes of headers that a block may stand for; a few bytes can repeat long ones. With less
than this a call is refused alone, as the table of the decoder is right after its headers."""

TOP_UP_BYTES = 2**30
"""How much of the window of the connection is used before it is given back."""

LEAST_GRANT_BYTES = DEFAULT_WINDOW_BYTES // 2
"""The least by which the window of a stream grows: data in tiny frames causes no tiny answers."""

MAX_FORGOTTEN = 1000
"""The number of streams ended from here about which frames may still be on their way, unless more
may be open at a time."""

MAX_ANSWERS_BYTES = 2**16
"""The most bytes of answers to pings, settings and refused streams that a client may leave unread.
It bounds as well how many of these one piece of input can cause."""

SETTINGS_BYTES = 256
"""What the answer to settings counts, as they may change the windows of all streams."""

TURN_BYTES = 2**22
"""The most data that becomes output at a time. Replies take turns of this, so that a long one does
not hold up short ones, and what the client does not read stays in its call."""


class Began(NamedTuple):
    """A stream began, with these headers."""

    stream_id: int
    headers: Headers


class Received(NamedTuple):
    """Data came in, which may be empty."""

    stream_id: int
    data: memoryview


class Ended(NamedTuple):
    """The client sends no more on a stream."""

    stream_id: int


class Reset(NamedTuple):
    """A stream is over before its end: nothing more comes in, and nothing can be sent."""

    stream_id: int


class Sent(NamedTuple):
    """All that was to be sent on a stream has become output, which waited for the client."""

    stream_id: int


class Acknowledged(NamedTuple):
    """The client has seen all that was sent before `ping`."""


Event = Began | Received | Ended | Reset | Sent | Acknowledged

_FRAME_SIZES = {
    Kind.PRIORITY: 5,
    Kind.RST_STREAM: 4,
    Kind.PING: 8,
    Kind.WINDOW_UPDATE: 4,
}
"""The lengths of frames that have but one."""

_OF_STREAMS = {Kind.DATA, Kind.HEADERS, Kind.PRIORITY, Kind.RST_STREAM, Kind.CONTINUATION}

_OF_CONNECTIONS = {Kind.SETTINGS, Kind.PING, Kind.GOAWAY}


class _Stream:
    """The state of one stream.

    Args:
        stream_id: The id of the stream.
        send_window: How many bytes the client takes on it by now.
    """

    __slots__ = ("id", "is_ended", "output", "receive_window", "send_window", "trailers")

    def __init__(self, stream_id: int, send_window: int) -> None:
        self.id = stream_id
        self.send_window = send_window
        self.receive_window = DEFAULT_WINDOW_BYTES
        self.is_ended = False
        """Whether the client sends no more."""
        self.output: deque[memoryview] = deque()
        """What waits for the window."""
        self.trailers: bytes | None = None
        """The block of headers that ends the stream, once it is known."""


class ServerConnection:
    """The state of one connection.

    Args:
        max_streams: The most streams at a time; the client is told, and more are refused.

    Attributes:
        output: What is to be sent, in order; whoever sends it clears it.
        last_stream_id: The highest id of a stream that began; 0: none.
        answers_bytes: The size of the answers to pings and the like since the client has last read
            all that was sent; whoever sends sets it to 0 then.
        room_bytes: How much data may become output now; whoever sends sets it to 0 while the client
            does not read, and calls `go_on` when it does.
    """

    def __init__(self, max_streams: int) -> None:
        settings = {
            Setting.MAX_CONCURRENT_STREAMS: max_streams,
            Setting.MAX_FRAME_SIZE: FRAME_BYTES,
            Setting.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
        }
        window = window_frame(0, MAX_WINDOW_BYTES - DEFAULT_WINDOW_BYTES)
        self.output: list[bytes | memoryview] = [settings_frame(settings), window]
        self.last_stream_id = 0
        self.answers_bytes = 0
        self.room_bytes = TURN_BYTES
        self._max_streams = max_streams
        self._places = max_streams
        """How many streams may yet begin with the input under way, however many end meanwhile: to
        begin and reset streams without end gains nothing."""
        self._pings = 0
        """How many pings from here have no answer."""
        self._streams: dict[int, _Stream] = {}
        self._forgotten: dict[int, None] = {}
        """Ids of streams that ended from here first, the oldest one first."""
        self._decoder = hpack.Decoder(max_header_list_size=MAX_DECODED_BYTES)
        self._rest = b""
        """The beginning of a frame, or of the preface."""
        self._has_begun = False
        """Whether the preface and the first settings were there."""
        self._has_preface = False
        self._data: tuple[int, int, int, int] | None = None
        """Of the frame of data under way: its stream, flags, and how many bytes of data and of
        padding are missing."""
        self._block: tuple[int, int, bytearray] | None = None
        """Of the headers under way: their stream, the flags of their first frame, and what is
        there."""
        self._block_bytes = 0
        """The length of their frames."""
        self._send_window = DEFAULT_WINDOW_BYTES
        self._receive_window = MAX_WINDOW_BYTES
        self._first_window = DEFAULT_WINDOW_BYTES
        """The window of new streams for what is sent."""
        self._longest_bytes = LEAST_FRAME_BYTES
        """The longest frame that the client takes."""
        self._blocked: dict[int, _Stream] = {}
        """Streams with output that waits for the window of the connection or for `room_bytes`, in
        the order of their turns; not those that wait for their own windows, so that a window that
        grows takes no time for streams that cannot use it."""
        self._refused_from = MAX_WINDOW_BYTES
        """The id above which streams are refused, as the connection is about to end."""
        self._readers: dict[int, Callable[[int, int, memoryview, list[Event]], None]] = {
            Kind.HEADERS: self._read_headers,
            Kind.CONTINUATION: self._read_continuation,
            Kind.RST_STREAM: self._read_reset,
            Kind.SETTINGS: self._read_settings,
            Kind.PING: self._read_ping,
            Kind.WINDOW_UPDATE: self._read_window,
            Kind.PUSH_PROMISE: self._read_push,
        }

    @property
    def has_begun(self) -> bool:
        """Whether the client has introduced itself as one of HTTP/2."""
        return self._has_begun

    @property
    def open_streams(self) -> int:
        """How many streams are not over."""
        return len(self._streams)

    def receive(self, data: bytes) -> list[Event]:
        """Takes bytes of the client; returns what they mean.

        Raises:
            ConnectionEndedError: They cannot be understood. The client is to be told by `end`.
        """
        self._check_answers()
        self._places = self._max_streams
        events: list[Event] = []
        if self._rest:
            data = self._rest + data
            self._rest = b""
        view, position, end = memoryview(data), 0, len(data)
        if not self._has_preface:
            position = self._read_preface(data)
            if not position:
                return events
        while True:
            if self._data is not None:
                position = self._pass_data(view, position, events)
            if end - position < HEAD_BYTES:
                break
            high, low, kind, flags, stream_id = HEAD.unpack_from(data, position)
            length, stream_id = high << 16 | low, stream_id & STREAM_MASK
            self._check_head(kind, flags, stream_id, length)
            is_data = kind == Kind.DATA
            # Of data the length of its padding at most, for its parts are passed on as they come.
            needed = bool(flags & Flag.PADDED and length) if is_data else length
            if end - position < HEAD_BYTES + needed:
                break
            position += HEAD_BYTES
            if is_data:
                self._begin_data(stream_id, flags, length, data[position] if needed else 0)
                position += needed
                continue
            reader = self._readers.get(kind)
            if reader is not None:  # else of a type that asks for nothing
                reader(stream_id, flags, view[position : position + length], events)
            position += length
        self._rest = data[position:]
        return events

    def grant(self, stream_id: int, window_bytes: int) -> None:
        """Lets the client send up to so many bytes on a stream before the next grant.

        A window that is nearly as large is left, so `window_bytes` is the default window at least.
        """
        stream = self._streams.get(stream_id)
        if stream is None or stream.is_ended:
            return
        increment = min(window_bytes, MAX_WINDOW_BYTES) - stream.receive_window
        if increment >= LEAST_GRANT_BYTES:
            self.output.append(window_frame(stream_id, increment))
            stream.receive_window += increment

    def send_headers(self, stream_id: int, block: bytes) -> None:
        """Sends the first headers of a reply, as HPACK encodes them."""
        if stream_id in self._streams:
            self.output.append(self._headers_frames(stream_id, block, 0))

    def send(self, stream_id: int, *parts: bytes) -> bool:
        """Sends data as the windows of the client allow; returns whether all of it is output."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return True
        stream.output += (memoryview(part) for part in parts if part)
        return self._send_output(stream)

    def end_stream(self, stream_id: int, trailers: bytes) -> bool:
        """Ends a stream with trailers after all data; returns whether all of it is output."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return True
        stream.trailers = trailers
        return self._send_output(stream)

    def reset(self, stream_id: int, code: Code) -> None:
        """Ends a stream at once; what waited to be sent is dropped."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._count_answer(reset_frame(stream_id, code))
            self._drop(stream_id)
            if not stream.is_ended:
                self._remember(stream_id)

    def go_on(self) -> list[Event]:
        """Sends the next turn of what waits, as the client has taken what was sent before."""
        events: list[Event] = []
        self.room_bytes = TURN_BYTES
        if self._blocked:
            ends = [stream for stream in self._blocked.values() if not stream.output]
            events += (Sent(stream.id) for stream in ends if self._send_output(stream))
            self._send_blocked(events)
        return events

    def ping(self) -> None:
        """Asks the client for a sign of life, which becomes the event `Acknowledged`."""
        self._pings += 1
        self.output.append(frame(Kind.PING, 0, 0, bytes(8)))

    def announce_end(self) -> None:
        """Asks the client to begin no further calls here, those on their way excepted."""
        self.output.append(goaway_frame(MAX_WINDOW_BYTES, Code.NO_ERROR))

    def end(self, code: Code = Code.NO_ERROR, text: str = "") -> None:
        """Tells the client that no stream is taken any more beyond those that have begun."""
        self._refused_from = self.last_stream_id
        self.output.append(goaway_frame(self.last_stream_id, code, text))

    def _read_preface(self, data: bytes) -> int:
        """Returns the length of the preface; 0: it is not whole."""
        if not PREFACE.startswith(data[: len(PREFACE)]):
            raise ConnectionEndedError(Code.PROTOCOL_ERROR, "expected the preface of HTTP/2")
        if len(data) < len(PREFACE):
            self._rest = data
            return 0
        self._has_preface = True
        return len(PREFACE)

    def _check_head(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """Raises ConnectionEndedError if no such frame can come now."""
        if length > FRAME_BYTES:
            raise ConnectionEndedError(Code.FRAME_SIZE_ERROR, "a frame is too long")
        if not self._has_begun:
            if kind != Kind.SETTINGS or flags & Flag.ACK:
                raise ConnectionEndedError(Code.PROTOCOL_ERROR, "expected settings first")
            self._has_begun = True
        if self._block is not None and (kind, stream_id) != (Kind.CONTINUATION, self._block[0]):
            raise ConnectionEndedError(Code.PROTOCOL_ERROR, "expected the rest of the headers")
        if (kind in _OF_CONNECTIONS and stream_id) or (kind in _OF_STREAMS and not stream_id):
            raise ConnectionEndedError(Code.PROTOCOL_ERROR, "a frame is on a wrong stream")
        expected = _FRAME_SIZES.get(kind, length)  # type: ignore[call-overload]
        # All but data is kept until it is whole.
        if length != expected or (kind != Kind.DATA and length > MAX_BLOCK_BYTES):
            raise ConnectionEndedError(Code.FRAME_SIZE_ERROR, "a frame has a wrong length")

    def _stream_of(self, stream_id: int) -> _Stream | None:
        """Returns an open stream; None if it is over, so that what comes for it is late."""
        stream = self._streams.get(stream_id)
        if stream is None and (stream_id > self.last_stream_id or stream_id % 2 == 0):
            raise ConnectionEndedError(Code.PROTOCOL_ERROR, "a frame is on a stream to come")
        return stream

    def _begin_data(self, stream_id: int, flags: int, length: int, padding: int) -> None:
        """Counts a frame of data, whose parts are passed on as they come."""
        stream = self._stream_of(stream_id)
        self._receive_window -= length
        if self._receive_window < 0:
            raise ConnectionEndedError(Code.FLOW_CONTROL_ERROR, "data is beyond the window")
        if MAX_WINDOW_BYTES - self._receive_window >= TOP_UP_BYTES:
            self.output.append(window_frame(0, MAX_WINDOW_BYTES - self._receive_window))
            self._receive_window = MAX_WINDOW_BYTES
        if stream is None:
            if stream_id not in self._forgotten:
                raise ConnectionEndedError(Code.STREAM_CLOSED, "data is on a stream that is over")
        elif stream.is_ended:
            raise ConnectionEndedError(Code.STREAM_CLOSED, "data comes after the end of a stream")
        else:
            stream.receive_window -= length
        missing = length
        if flags & Flag.PADDED:
            missing -= 1 + padding
            if missing < 0:
                raise ConnectionEndedError(Code.PROTOCOL_ERROR, "a frame is all padding")
        self._data = stream_id, flags, missing, padding

    def _pass_data(self, view: memoryview, position: int, events: list[Event]) -> int:
        """Passes on what there is of the frame of data under way; returns where it ends."""
        stream_id, flags, missing, padding = self._data  # type: ignore[misc]  # asked by the caller
        part = view[position : position + missing]
        missing -= len(part)
        position += len(part)
        skipped = 0 if missing else min(padding, len(view) - position)
        padding -= skipped
        is_whole = not missing and not padding
        self._data = None if is_whole else (stream_id, flags, missing, padding)
        stream = self._streams.get(stream_id)
        if stream is not None:  # else it has ended meanwhile
            if stream.receive_window < 0:
                self._fail(stream_id, Code.FLOW_CONTROL_ERROR, events)
                return position + skipped
            if part or skipped:  # of padding alone, too, as that takes a part of the window
                events.append(Received(stream_id, part))
            if is_whole and flags & Flag.END_STREAM:
                self._end_input(stream, events)
        return position + skipped

    def _end_input(self, stream: _Stream, events: list[Event]) -> None:
        stream.is_ended = True
        events.append(Ended(stream.id))

    def _read_headers(
        self, stream_id: int, flags: int, payload: memoryview, events: list[Event]
    ) -> None:
        if flags & Flag.PADDED:
            payload = _without_padding(payload)
        if flags & Flag.PRIORITY:
            if len(payload) < _FRAME_SIZES[Kind.PRIORITY]:
                raise ConnectionEndedError(Code.FRAME_SIZE_ERROR, "headers are too short")
            payload = payload[_FRAME_SIZES[Kind.PRIORITY] :]
        if flags & Flag.END_HEADERS:
            self._take_headers(stream_id, flags, bytes(payload), events)
        else:
            self._block, self._block_bytes = (stream_id, flags, bytearray(payload)), len(payload)

    def _read_continuation(
        self, stream_id: int, flags: int, payload: memoryview, events: list[Event]
    ) -> None:
        if self._block is None:
            raise ConnectionEndedError(Code.PROTOCOL_ERROR, "expected no rest of headers")
        _, first_flags, block = self._block
        block += payload
        # An empty part counts, too: a client may send any number of them.
        self._block_bytes += HEAD_BYTES + len(payload)
        if self._block_bytes > MAX_BLOCK_BYTES:
            raise ConnectionEndedError(Code.ENHANCE_YOUR_CALM, "headers are too long")
        if flags & Flag.END_HEADERS:
            self._block = None
            self._take_headers(stream_id, first_flags, bytes(block), events)

    def _take_headers(self, stream_id: int, flags: int, block: bytes, events: list[Event]) -> None:
        """Begins a stream, or ends one by trailers."""
        # Always, as the decoder learns from every block.
        try:
            headers: Headers = self._decoder.decode(block, raw=True)  # type: ignore[assignment]
        except hpack.OversizedHeaderListError as error:
            raise ConnectionEndedError(Code.ENHANCE_YOUR_CALM, "headers are too long") from error
        except hpack.HPACKError as error:
            raise ConnectionEndedError(Code.COMPRESSION_ERROR, str(error)) from error
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._take_trailers(stream, flags, events)
            return
        if stream_id in self._forgotten:
            return
        if stream_id % 2 == 0 or stream_id <= self.last_stream_id:
            raise ConnectionEndedError(Code.STREAM_CLOSED, "headers are on a stream that is over")
        self.last_stream_id = stream_id
        is_full = len(self._streams) >= self._max_streams or not self._places
        if is_full or stream_id > self._refused_from:
            # By this code the client knows that the call has not begun, and may try again.
            self._answer(reset_frame(stream_id, Code.REFUSED_STREAM))
            if not flags & Flag.END_STREAM:
                self._remember(stream_id)
            return
        self._places -= 1
        stream = self._streams[stream_id] = _Stream(stream_id, self._first_window)
        events.append(Began(stream_id, headers))
        if flags & Flag.END_STREAM:
            self._end_input(stream, events)

    def _take_trailers(self, stream: _Stream, flags: int, events: list[Event]) -> None:
        """Ends a stream by headers, in which gRPC's clients say nothing."""
        if stream.is_ended:
            raise ConnectionEndedError(Code.STREAM_CLOSED, "headers come after the end")
        if flags & Flag.END_STREAM:
            self._end_input(stream, events)
        else:
            self._fail(stream.id, Code.PROTOCOL_ERROR, events)

    def _read_reset(
        self, stream_id: int, _flags: int, _payload: memoryview, events: list[Event]
    ) -> None:
        if self._stream_of(stream_id) is not None:
            self._drop(stream_id)
            events.append(Reset(stream_id))

    def _read_settings(
        self, _stream_id: int, flags: int, payload: memoryview, events: list[Event]
    ) -> None:
        if len(payload) % SETTING.size or (flags & Flag.ACK and payload):
            raise ConnectionEndedError(Code.FRAME_SIZE_ERROR, "settings have a wrong length")
        if flags & Flag.ACK:
            return
        first_window = self._first_window
        for name, value in SETTING.iter_unpack(payload):
            if name == Setting.INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW_BYTES:
                    raise ConnectionEndedError(Code.FLOW_CONTROL_ERROR, "a window is too large")
                first_window = value
            elif name == Setting.MAX_FRAME_SIZE:
                if not LEAST_FRAME_BYTES <= value <= MOST_FRAME_BYTES:
                    raise ConnectionEndedError(Code.PROTOCOL_ERROR, "a setting is out of bounds")
                self._longest_bytes = value
            elif name == Setting.ENABLE_PUSH and value > 1:
                raise ConnectionEndedError(Code.PROTOCOL_ERROR, "a setting is out of bounds")
        self.answers_bytes += SETTINGS_BYTES
        # First: until then the client counts by its former settings.
        self._answer(frame(Kind.SETTINGS, Flag.ACK, 0))
        if first_window != self._first_window:
            self._resize_windows(first_window, events)

    def _resize_windows(self, first_window: int, events: list[Event]) -> None:
        """Sets the window of new streams, which changes those that are there by as much."""
        more = first_window - self._first_window
        self._first_window = first_window
        for stream in self._streams.values():
            stream.send_window += more
            if stream.send_window > MAX_WINDOW_BYTES:
                raise ConnectionEndedError(Code.FLOW_CONTROL_ERROR, "a window is too large")
        for stream in list(self._streams.values()):
            self._send_further(stream, events)

    def _read_ping(
        self, _stream_id: int, flags: int, payload: memoryview, events: list[Event]
    ) -> None:
        if not flags & Flag.ACK:
            self._answer(frame(Kind.PING, Flag.ACK, 0, bytes(payload)))
        elif self._pings:
            self._pings -= 1
            events.append(Acknowledged())

    def _answer(self, answer: bytes) -> None:
        """Sends what the client has asked for; it has to read what it asks for."""
        self._count_answer(answer)
        self._check_answers()

    def _count_answer(self, answer: bytes) -> None:
        self.output.append(answer)
        self.answers_bytes += len(answer)

    def _check_answers(self) -> None:
        if self.answers_bytes > MAX_ANSWERS_BYTES:
            raise ConnectionEndedError(Code.ENHANCE_YOUR_CALM, "answers are not read")

    def _read_window(
        self, stream_id: int, _flags: int, payload: memoryview, events: list[Event]
    ) -> None:
        increment = UINT32.unpack(payload)[0] & STREAM_MASK
        if stream_id:
            stream = self._stream_of(stream_id)
            if stream is None:
                return
            stream.send_window += increment
            if not increment:
                self._fail(stream_id, Code.PROTOCOL_ERROR, events)
            elif stream.send_window > MAX_WINDOW_BYTES:
                self._fail(stream_id, Code.FLOW_CONTROL_ERROR, events)
            else:
                self._send_further(stream, events)
            return
        self._send_window += increment
        if not increment:
            raise ConnectionEndedError(Code.PROTOCOL_ERROR, "a window grows by nothing")
        if self._send_window > MAX_WINDOW_BYTES:
            raise ConnectionEndedError(Code.FLOW_CONTROL_ERROR, "a window is too large")
        self._send_blocked(events)

    def _read_push(
        self, _stream_id: int, _flags: int, _payload: memoryview, _events: list[Event]
    ) -> None:
        raise ConnectionEndedError(Code.PROTOCOL_ERROR, "clients cannot push")

    def _send_blocked(self, events: list[Event]) -> None:
        """Sends what waits for its turn, as far as the window of the connection allows."""
        for stream in list(self._blocked.values()):
            if self.room_bytes <= 0 or self._send_window <= 0:
                return
            if self._send_output(stream):
                events.append(Sent(stream.id))

    def _send_further(self, stream: _Stream, events: list[Event]) -> None:
        """Sends what has waited for the window of a stream."""
        if stream.output and stream.id not in self._blocked and self._send_output(stream):
            events.append(Sent(stream.id))

    def _send_output(self, stream: _Stream) -> bool:
        """Sends what the windows allow; returns whether nothing is left."""
        waiting = stream.output
        self._blocked.pop(stream.id, None)
        while waiting:
            part = waiting[0]
            room = min(stream.send_window, self._send_window, self.room_bytes, self._longest_bytes)
            if room <= 0:
                if stream.send_window > 0:
                    self._blocked[stream.id] = stream  # behind those whose turn comes first
                return False
            now = part[:room]
            self.output += (frame_head(len(now), Kind.DATA, 0, stream.id), now)
            stream.send_window -= len(now)
            self._send_window -= len(now)
            self.room_bytes -= len(now)
            if len(now) < len(part):
                waiting[0] = part[len(now) :]
            else:
                waiting.popleft()
        if self.room_bytes <= 0:  # the end of a stream waits likewise: it would free a place
            self._blocked[stream.id] = stream
            return False
        if stream.trailers is not None:
            self.output.append(self._headers_frames(stream.id, stream.trailers, Flag.END_STREAM))
            if stream.is_ended:
                self._drop(stream.id)
            else:
                # The client may stop sending what nobody will read; the reply counts all the same.
                self.reset(stream.id, Code.NO_ERROR)
        return True

    def _headers_frames(self, stream_id: int, block: bytes, flags: int) -> bytes:
        """Returns the frames of a block of headers."""
        longest = self._longest_bytes
        first, rest = block[:longest], block[longest:]
        head = flags if rest else flags | Flag.END_HEADERS
        frames = frame(Kind.HEADERS, head, stream_id, first)
        while rest:
            first, rest = rest[:longest], rest[longest:]
            frames += frame(Kind.CONTINUATION, 0 if rest else Flag.END_HEADERS, stream_id, first)
        return frames

    def _fail(self, stream_id: int, code: Code, events: list[Event]) -> None:
        """Ends a stream on which the client has broken a rule."""
        self.reset(stream_id, code)
        events.append(Reset(stream_id))

    def _drop(self, stream_id: int) -> None:
        self._blocked.pop(stream_id, None)
        del self._streams[stream_id]

    def _remember(self, stream_id: int) -> None:
        self._forgotten[stream_id] = None
        if len(self._forgotten) > max(MAX_FORGOTTEN, self._max_streams):
            del self._forgotten[next(iter(self._forgotten))]


def _without_padding(payload: memoryview) -> memoryview:
    """Returns what a padded frame holds."""
    if not payload or payload[0] >= len(payload):
        raise ConnectionEndedError(Code.PROTOCOL_ERROR, "a frame is all padding")
    return payload[1 : len(payload) - payload[0]]
