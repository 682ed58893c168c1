"""Random calls, valid and as rude as callers can be.

Now and then one is large: a leak of small messages drowns in what a heap breathes anyhow.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stn_client import Affine
from stn_client._arguments import map_operand
from stn_client._calls import generate_grid, objective, warp, warp_gradients
from stn_client._prepared_call import Call, CallSettings
from stn_client._residents import ResidentTensor
from stn_client._transfers import download, given_up, kept, release, resident_of, upload
from stn_proto.v1 import resident_pb2
from stress.ways import CLIENT, WAYS, ByGrpc, ByTtrpc
from support.bad_requests import BAD_REQUESTS, theta
from support.harness import METHOD_PREFIX
from support.many import compute_many, replies
from support.oip import SERVICE, infer_request

SIZES = (1, 7, 16, 33, 64, 128)
LARGE_SIDES = {512: 0.2, 1024: 0.015, 1440: 0.005}
"""Of maps, and how often they come. Requests and replies have up to 16 MiB."""
PLACED = 0.1
"""How many messages of several calls name arenas and tensors that stay on the server. The server
keeps what it knows of a call within a message by its bytes, so that each of those is a new one."""


@dataclass(frozen=True)
class Sort:
    """What a call computes, but for the numbers of its operands."""

    operation: str
    channels: int
    size: tuple[int, ...]
    """Of the feature map."""
    output_size: tuple[int, ...]
    interpolation: str
    loss: str

    @classmethod
    def random(cls, rng: random.Random, channels: int, sides: Sequence[int]) -> Sort:
        """Any operation on images of such sizes, or on volumes of one plane."""
        operations = ("warp", "warp", "kept", "gradients", "grid", "objective")
        depth = rng.choice(((), (), (), (1,)))
        return cls(
            rng.choice(operations),
            channels,
            (*depth, *sides[:2]),
            (*depth, *sides[2:]),
            rng.choice(("nearest", "bilinear")),
            rng.choice(("ssd", "huber", "ncc")),
        )


KNOWN = random.Random(0)
SMALL = [Sort.random(KNOWN, KNOWN.choice((1, 3)), KNOWN.choices(SIZES, k=4)) for _ in range(40)]
"""So few that the server, which keeps plans for calls of known sizes, knows all after some hundred
calls; what it takes from then on is a leak."""
LARGE = {side: [Sort.random(KNOWN, 1, [side] * 4) for _ in range(8)] for side in LARGE_SIDES}


def random_sort(rng: random.Random) -> Sort:
    """One of the small ones, or now and then a large one."""
    if rng.random() < sum(LARGE_SIDES.values()):
        (side,) = rng.choices(list(LARGE_SIDES), list(LARGE_SIDES.values()))
        return rng.choice(LARGE[side])
    return rng.choice(SMALL)


Learn = Callable[[bytes], None]


def forget(_reply: bytes) -> None:
    """Takes a reply from which nothing is learnt."""


@dataclass(frozen=True)
class Message:
    """What a call sends, and what its reply is for."""

    path: str
    message: bytes
    held: object = None
    """Kept until the call has ended."""
    learn: Learn = forget
    """Takes the reply of a call that ended well."""


@dataclass(frozen=True)
class RandomCalls:
    """Makes calls by one transport.

    Args:
        way: The connection.
        rng: Chooses.
        residents: The tensors that callers of this transport have uploaded and not released. Any
            of them may name one that another one releases, or for which the server has no room.
    """

    way: ByGrpc | ByTtrpc
    rng: random.Random
    residents: list[ResidentTensor]

    def message(self) -> Message:
        """A call of any kind."""
        kinds = (self._bad, self._oip, self._many, self._resident, *4 * (self._one,))
        return self.rng.choice(kinds)()

    def _bad(self) -> Message:
        bad = self.rng.choice(BAD_REQUESTS)
        return Message(METHOD_PREFIX + bad.method, bad.message)

    def _oip(self) -> Message:
        sort = random_sort(self.rng)
        if not isinstance(self.way, ByGrpc) or len(sort.size) == 3:
            return self._one()
        arrays = {"feature_map": self._map(sort), "theta": theta(1)}
        request = infer_request("stn_warp_affine", arrays)
        request.parameters["output_size"].string_param = ",".join(map(str, sort.output_size))
        return Message(f"/{SERVICE}/ModelInfer", request.SerializeToString())

    def _one(self) -> Message:
        sort = random_sort(self.rng)
        return self._of_sdk(self._compute(sort, self._new_or_resident(sort)))

    def _many(self) -> Message:
        """Some small calls of any operations in one message."""
        nested, everything_held = [], []
        is_placed = self.rng.random() < PLACED
        for sort in self.rng.choices(SMALL, k=self.rng.randint(1, 6)):
            feature_map = self._new_or_resident(sort) if is_placed else self._map(sort)
            call = self._compute(sort, feature_map)
            message, held = self.way.message_of(call) if is_placed else (call.request, None)
            name = call.method.rpartition("/")[2]
            nested.append((name, type(call.message).FromString(message)))
            everything_held.append(held)

        def learn(reply: bytes) -> None:
            assert len(replies(reply)) == len(nested)

        message = compute_many(*nested).SerializeToString()
        return Message(METHOD_PREFIX + "ComputeMany", message, everything_held, learn)

    def _resident(self) -> Message:
        """Moves a tensor that stays on the server, or lets it go."""
        kind, settings = self.rng.randrange(4), CallSettings()
        if kind == 0 and self.residents:
            tensor = self.residents.pop(self.rng.randrange(len(self.residents)))
            ((address, references),) = given_up([tensor], CLIENT).items()
            return self._of_sdk(release(references, address, settings))
        if kind == 1 and self.residents:
            one = self.rng.choice(self.residents)
            (reference,) = one.held.references.values()
            return self._of_sdk(download(reference, 0, one.nbytes, settings))
        tensor = resident_of(self._map(self.rng.choice(SMALL)), CLIENT)
        piece = memoryview(tensor.array).cast("B")

        def learn(reply: bytes) -> None:
            tensor.held.add(resident_pb2.UploadReply.FromString(reply).resident)
            self.residents.append(tensor)

        return self._of_sdk(upload(piece, None, 0, tensor.dtype, tensor.nbytes, settings), learn)

    def _of_sdk(self, call: Call[Any], learn: Learn = forget) -> Message:
        return Message(call.method, *self.way.message_of(call), learn)

    def _map(self, sort: Sort) -> np.ndarray:
        return np.full((1, sort.channels, *sort.size), self.rng.random(), np.float32)

    def _new_or_resident(self, sort: Sort) -> Any:
        new = self._map(sort)
        return self.rng.choice([new, *(one for one in self.residents if one.shape == new.shape)])

    def _compute(self, sort: Sort, feature_map: Any) -> Call[Any]:
        is_volume, size = len(sort.size) == 3, sort.output_size
        transform = Affine(np.eye(3, 4, dtype=np.float32)[None] if is_volume else theta(1))
        target = np.ones((1, sort.channels, *size), np.float32)
        options = {"interpolation": sort.interpolation}
        match sort.operation:
            case "gradients":
                needs = ("feature_map", "transform")
                return warp_gradients(target, feature_map, transform, needs, options)
            case "grid":
                return generate_grid(transform, size, {})
            case "objective":
                how = {"loss": sort.loss, "delta": 1.0, "domain": "overlap"}
                needs = ("gradient",)
                return objective(feature_map, target, transform, None, how, needs, options)
            case "kept":
                feature_map = kept(map_operand("feature_map", feature_map), CLIENT)
        return warp(feature_map, transform, size, options)


async def rude_call(calls: RandomCalls) -> str:
    """One call with a random deadline, maybe cancelled; how it ended."""
    rng, one = calls.rng, calls.message()
    timeout_s = rng.choice((None, 30.0, 1.0, 0.05, 0.002))
    cancelled_after_s = rng.random() * 0.02 if rng.random() < 0.1 else None
    code, reply = await calls.way.answered(
        one.path, one.message, timeout_s, cancelled_after_s, one.held
    )
    if code == "OK":
        one.learn(reply)
    return code


async def traffic(target: str, count: int, concurrency: int, seed: int) -> Counter[str]:
    """So many rude calls, over some connections by either transport; how they ended."""
    ended: Counter[str] = Counter()
    numbers = iter(range(count))
    residents: dict[type, list[ResidentTensor]] = {way: [] for way in WAYS}

    async def caller(name: int) -> None:
        kind = WAYS[name % len(WAYS)]
        async with kind.connected(target, name) as way:
            calls = RandomCalls(way, random.Random(f"{seed} {name}"), residents[kind])
            for _ in numbers:
                ended[await rude_call(calls)] += 1

    await asyncio.gather(*(caller(name) for name in range(concurrency)))
    gc.collect()  # gRPC ties cancelled calls into rings, and their connections stay open meanwhile
    return ended
