"""The numbers that were found by measuring or by judgement, each with its effect.

What an operator may want to change is configuration (`config`); what a protocol or a library
dictates stands where it is used. Everything else that could be another number stands here.
"""

from __future__ import annotations

# Admission

CALLER_SHARE = 4
"""How many times what is free one caller may hold: alone 80 % of a limit. More lets one caller fill
the server before the next one comes, less refuses a caller who is alone."""

LEAST_RETRY_S = 0.05
"""The least retry time for refused callers: a few batches of typical length. Less lets them call
again before there is room."""

DEVICE_FULL_RETRY_S = 1.0
"""The retry time for callers whose batch did not fit a device: by then other batches have left
it."""

ARENAS_FULL_RETRY_S = 5.0
"""The retry time for callers who want more arenas than may be: those stay as long as their callers
do. Less makes callers ask in vain more often, more keeps them on gRPC when there is room again."""

RESIDENTS_FULL_RETRY_S = 1.0
"""The retry time for callers for whose tensor there is no room: by then other calls have ended."""

# The order of the queue

IMPLICIT_DEADLINE_S = 1.0
"""Calls with a later deadline, or none, count as due so long after their arrival. Long enough for
deadlines to mean something, short enough that no call waits for long behind others."""

TURN = 1 / 8
"""Part of a batch that a caller may take before the others of its round go first. Less interleaves
callers, and keys with them, more finely. Under overload (`bench.tuning_numbers`) a quiet caller
waits at most (p99) 126, 167 and 175 ms with 1/64, 1/8 and 1, and batches hold 18.6, 21.3 and 22.9
items."""

LEAST_PART = 1 / 64
"""Part of a batch that a call counts at least: a launch is not free, however small."""

PRIORITY_FACTOR = 4.0
"""Each priority of the Open Inference Protocol is due so many times later than the one before.
Less makes them matter less, more lets the last ones wait longer."""

# What is expected

SAFETY = 2.0
"""The safety factor of forecasts: machines stutter, and results take sending. Less admits calls
that will be late, which cost the device all the same; more refuses calls that would have been in
time. Under overload with short deadlines (`bench.tuning_numbers`) 49, 33, 3 and 0 % of the admitted
calls are late with 1, 1.5, 2 and 3, and 77, 67, 90 and 96 % of the capacity are results in time."""

DUE_SLICE_S = IMPLICIT_DEADLINE_S / 16
"""Calls that are due in the same slice of time count as due together in a forecast, which adds up a
few dozen sums however many wait."""

MEMORY = 0.97
"""Weight of the past against one new batch in the cost model: the last thirty or so count."""

TRUSTED_BATCHES = 8
"""The number of batches after which an unexpected duration counts as an accident."""

SURPRISE = 4.0
"""How many times as long or short a batch may count; a lasting change is followed by this factor a
batch."""

SHORTEST_S = 1e-6
"""The least expected duration of a batch, so that a factor of it is above nothing."""

STIFFNESS = 0.01
"""Pull towards a line through the origin, which decides while batches are all of one size."""

UNLEARNED_BATCHES = 64
"""How many batches wait at most until a forecast learns from them; calls that find the server idle
ask for none. Those before them would have a seventh of the weight."""

# How batches are computed

SMALL_BYTES, SMALL_SAMPLES, SMALL_WORK = 1 << 21, 1 << 16, 1 << 20
"""Batches up to this are computed in the event loop's own thread, because waking another one takes
longer: colour images of 224 pixels, and their gradients. More keeps the loop from reading and
answering meanwhile. By the local transport eight callers of such images make 2700 calls a second
so, and 1750 if another thread computes them (`bench.bench_local`)."""

LANES_PER_GPU = 2
"""How many batches run at a time on a GPU: one is copied while the other is computed."""

# How the event loop is watched

BEAT_S = 0.25
"""The interval at which the lag of the event loop is measured, and a thread checks that it runs.
Less sees shorter waits, and takes a larger part of a core than a thousandth."""

BEGIN_S = 0.001
"""How long the event loop begins calls before it sends and reads again. Less wakes callers one by
one, more lets the first of many wait for the last."""

SELF_TEST_CALLS = 16
"""Warps, and as many gradients, by which the server tries its device when a call has failed. One
that fails one call in ten passes with a chance of 3 %. Less misses more, more takes longer."""

SELF_TEST_PAUSE_S = 1.0
"""The pause from one such test to the next."""

# How messages come in

LONG_FRAMES_PART = 1 / 4
"""The part of the admitted bytes that long frames of the local transport may take while they come
in, beside what is admitted. More lets more callers send at a time, less takes less memory."""

PROBE_S = 5.0
"""How long the message of a health check may take, and how long one waits while others do. Less
refuses probes on bad networks, more lets callers who stall keep probes out for longer."""

MAX_STREAM_CALLS = 64
"""Messages of one stream that are being answered; further ones are not read yet. More lets one
stream fill the queue, less lets it use less of a batch."""

MAX_PEERS = 1024
"""The number of connections whose peer address is remembered, so that it is not parsed anew."""

# How connections are kept

ACCEPT_PAUSE_S = 1.0
"""The pause after a connection that could not be accepted, as there was no descriptor left: by then
others have been given back. Less fills the log."""

HANDSHAKE_S = 10.0
"""How long a connection may take to begin; idle strangers would hold descriptors."""

UNREAD_S = 120.0
"""How long what was sent may wait for a client to read anything of it, before the connection ends:
by then it has stopped for good, and its calls would hold their places. Less ends the calls of
clients that are suspended for a while."""

# How the server ends

REFUSING_S = 0.1
"""How long calls on their way are still refused, with a status that says to try elsewhere, before
all connections end."""

STOPPING_S = 1.0
"""How long calls that are cut off, and what their callers are told, may take to end."""

FLUSH_S = 1.0
"""How long the last spans may take to leave."""

LAST_LINES_S = 1.0
"""How long the reader of the output may take for the last lines."""

# What is counted, logged and read again

MAX_NOTES = 1024
"""The most of what metrics have not counted yet: some hundred calls. To count takes longer than to
compute a small warp when the caches hold other things, so it is done for many in a row; more of
them keep a scrape waiting."""

REPEAT_S = 10.0
"""Failures that are alike are logged once in this time, with their count. Less writes more."""

MAX_REPEATED = 1024
"""How many kinds of failures are counted at a time; more make the oldest be forgotten."""

MAX_REQUEST_IDS = 16
"""How many ids of calls that failed alike one line of the log names."""

LOG_CAPACITY_BYTES = 256 * 1024
"""How many bytes of the log, some thousand lines, may wait for a slow reader; more are dropped."""

LOOK_S = 0.5
"""The interval of looks at files; a changed file is read once it has not changed for so long."""

NEW_OBJECTS = 10_000
"""How many objects may be left over before garbage is collected: some megabytes at most."""
