"""What both clients do in several calls, written once as generators of steps; see `_steps`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from stn_client._arguments import check_copy
from stn_client._arrays import AnyArray, Array, operand
from stn_client._channels import Channels
from stn_client._connection import BaseClient, Progress
from stn_client._errors import (
    DeadlineExceededError,
    InvalidRequestError,
    StnClientError,
    UnavailableError,
    invalid,
)
from stn_client._options import CallOptions
from stn_client._placing import MIN_PLACED_BYTES
from stn_client._prepared_call import Call, CallSettings, settings_of
from stn_client._residents import LOST, MAX_LOSSES, ResidentTensor
from stn_client._stacking import is_of_all, stack_shape, stacked, unstacked
from stn_client._steps import Steps
from stn_client._transfers import (
    MAX_RELEASED,
    PIECE_BYTES,
    check_resident,
    download,
    given_up,
    kept,
    release,
    resident_of,
    upload,
)
from stn_client._transports import Transports
from stn_client._ttrpc import Discovery
from stn_proto import to_payload
from stn_proto.v1.tensor_pb2 import ResidentRef


class SteppingClient(BaseClient):
    """A client of either kind, and what it does in several steps."""

    @abstractmethod
    def _run(self, call: Call[Any]) -> Any:
        """Sends a call, again if the policy says so, and reads the reply."""

    @abstractmethod
    def empty(self, shape: Sequence[int], dtype: DTypeLike = np.float32) -> Any:
        """Returns an array in memory that the server may see; see `Client.empty`."""

    @abstractmethod
    def _transports(self) -> Transports:
        """Returns the transports by which calls go that are made here."""

    @abstractmethod
    def _wait_for(self, end: Future[bool], timeout_s: float | None) -> Any:
        """Returns when something has ended, or after the timeout."""

    def _new_transports(
        self, stack: Any, connect: Callable[..., Any], to_thread: Callable[..., Any] | None = None
    ) -> Transports:
        """Returns transports to the target; `stack` is as of `Channels`, others as of theirs."""
        return Transports(
            Channels(stack, self.target, self._access, self._replicas),
            self._replicas,
            Discovery(self.target, is_wanted=self._is_local_wanted),
            self._access.metadata,
            self._name,
            connect,
            to_thread,
        )

    def _uploading(self, array: AnyArray, options: CallOptions) -> Steps[ResidentTensor]:
        """Leaves a copy of an array on a server."""
        resident, settings = resident_of(array, self._name), settings_of(options)
        resident.held.add((yield from self._sending(resident, "", lambda: settings)))
        return resident

    def _downloading(self, tensor: ResidentTensor, options: CallOptions) -> Steps[Array]:
        """Returns the array of a resident tensor, as a server holds it."""
        check_resident(tensor)
        settings, held = settings_of(options), tensor.held
        references = list(held.references.values())
        if held.client != self._name or not references:
            expected = "expected a tensor on the server of this client, got another one."
            raise invalid("tensor", expected)
        # Bytes come in the wire's order and are written in place, whatever this host's order is.
        array = np.empty(tensor.shape, tensor.dtype.newbyteorder("<"))
        numbers = array.reshape(-1).view(np.uint8)
        offset = 0
        while offset < numbers.size:
            size_bytes = min(PIECE_BYTES, numbers.size - offset)
            try:
                piece = yield self._run(download(references[0], offset, size_bytes, settings))
            except (InvalidRequestError, UnavailableError) as error:
                if len(references) == 1 or not self._is_lost(error, references[0]):
                    raise
                del references[0]  # the next replica that holds it has the same bytes
            else:
                numbers[offset : offset + size_bytes] = piece
                offset += size_bytes
        return array

    def _releasing(self, tensors: Sequence[ResidentTensor], options: CallOptions) -> Steps[int]:
        """Releases tensors on the servers that hold them; returns how many were there."""
        for tensor in tensors:
            check_resident(tensor)
        settings, released = settings_of(options), 0
        failures: list[tuple[str, StnClientError]] = []
        for address, references in given_up(tensors, self._name).items():
            for start in range(0, len(references), MAX_RELEASED):
                some = references[start : start + MAX_RELEASED]
                try:
                    released += yield self._run(release(some, address, settings))
                except StnClientError as error:
                    # With a replica goes what it held; only the target as a whole has to be there.
                    is_gone = isinstance(error, UnavailableError)
                    if not (is_gone and self._replicas.reached(address)):
                        failures.append((address, error))
        # Not sooner: what one replica makes of it is no reason to ask none of the others.
        if failures:
            (_, first), *others = failures
            for address, other in others:
                first.add_note(f"At {address}: {other}")
            raise first
        return released

    def _preparing(self, call: Call[Any], progress: Progress) -> Steps[None]:
        """Chooses the replica for a call that names tensors, and uploads what is missing there.

        Whatever goes wrong with that is no reason to fail: the call brings the tensor along. Only
        its time may be over.
        """
        call.choose(self._name)
        for resident in call.missing(self._name):
            try:
                yield from self._uploading_once(resident, call.address, progress.upload_settings)
            except DeadlineExceededError:
                raise
            except StnClientError:
                pass
            call.choose(self._name)

    def _uploading_once(
        self, resident: ResidentTensor, address: str, settings: Callable[[], CallSettings]
    ) -> Steps[None]:
        """Uploads a tensor, or waits for another call that does; what it is refused, all are."""
        held, mine = resident.held, Future[bool]()
        while not held.is_at(address):
            # In one step, as several threads may come here: one of them uploads, the others wait.
            other = held.uploads.setdefault(address, mine)
            if other is mine:
                try:
                    held.add((yield from self._sending(resident, address, settings)))
                    mine.set_result(True)
                except DeadlineExceededError:
                    raise
                except StnClientError:
                    mine.set_result(True)
                    raise
                finally:
                    del held.uploads[address]
                    if not mine.done():  # cancelled, or without more time: others may have it
                        mine.set_result(False)
                return
            yield self._wait_for(other, settings().timeout_s)
            if not other.done():
                got = "got none: another call's upload of its tensor took longer"
                advice = "Give it more time."
                raise DeadlineExceededError(
                    f"timeout_s: expected a result in time, {got}. {advice}"
                )
            if other.result():
                return

    def _sending(
        self, resident: ResidentTensor, address: str, settings: Callable[[], CallSettings]
    ) -> Steps[ResidentRef]:
        """Sends a tensor in pieces, so that no message is larger than what every server takes.

        Args:
            resident: The tensor.
            address: Of a replica; empty: any.
            settings: Says how the next piece is sent.

        Returns:
            Where the tensor stays.
        """
        payload, dtype = to_payload(resident.array), resident.array.dtype
        offset, reference, losses = 0, None, 0
        while True:
            piece = payload[offset : offset + PIECE_BYTES]
            call = upload(piece, reference, offset, dtype, len(payload), settings())
            # The first reply names the tensor; later pieces go to it by that name.
            call.address = address if reference is None else reference.address
            try:
                reference, missing_bytes = yield self._run(call)
            except (InvalidRequestError, UnavailableError) as error:
                losses += 1
                if reference is None or losses >= MAX_LOSSES or not self._is_lost(error, reference):
                    raise
                offset, reference = 0, None  # from the beginning
            else:
                offset += len(piece)
                if not missing_bytes:
                    there: ResidentRef = reference
                    return there

    def _is_lost(self, error: StnClientError, reference: ResidentRef) -> bool:
        """Returns whether a tensor was evicted, or has gone with its replica."""
        is_gone = isinstance(error, UnavailableError) and self._replicas.reached(reference.address)
        return bool(is_gone) or error.reason == LOST

    def _sharing(self, feature_map: AnyArray) -> Steps[Any]:
        """Returns a feature map that a warp and its gradients send, or copy, once."""
        given = operand("feature_map", feature_map)
        # Small maps cost less to send twice than to keep.
        if given.array.nbytes < MIN_PLACED_BYTES or isinstance(given, ResidentTensor):
            return given
        # Without shared memory the server keeps the map from the warp on, until its gradients.
        if (yield from self._transports().find_local()) is None:
            return kept(given, self._name)
        check_copy("feature_map", given.array)
        # One copy to memory that the server sees serves the warp and its gradients.
        copied = yield self.empty(given.array.shape, given.array.dtype)
        copied[...] = given.array
        return replace(given, array=copied)

    def _stacking(self, calls: Sequence[Call[Any]]) -> Steps[list[Any]]:
        """Makes calls that are alike as one.

        Returns:
            Their results or errors; nothing if each has to be made alone.
        """
        # In an arena, if there is one: stacking then is the only copy.
        memory = yield self.empty(stack_shape(calls), np.uint8)
        try:
            return unstacked((yield self._run(stacked(calls, memory))), calls)
        except StnClientError as error:
            if is_of_all(error):
                return [error] * len(calls)
            # The error may be that of one call alone, so each is made by itself, and counted anew.
            self._counts.retract(len(calls))
            return []
