"""The methods of the Open Inference Protocol, each from a call to its reply, by any transport."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from time import perf_counter
from typing import Any, TypeVar

from google.protobuf.message import Message

from stn_proto.oip import inference_pb2
from stn_server.batching.batcher import Batcher
from stn_server.batching.work import Finished
from stn_server.call import Call
from stn_server.config import ServerConfig
from stn_server.errors import RegionNotFoundError, UnsupportedError
from stn_server.events import Events, Stage
from stn_server.oip.models import VERSION, Model, models
from stn_server.oip.regions import Region, Regions
from stn_server.oip.requests import Decoder, Inference
from stn_server.oip.statistics import Counts, ModelStatistics
from stn_server.operands import parse
from stn_server.quota import Quotas, Resize
from stn_server.service import Method
from stn_server.tokens import UNLIMITED
from stn_server.translate import Translator

_SERVICE = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

OIP_SERVICE, OIP_METHODS = _SERVICE.full_name, tuple(method.name for method in _SERVICE.methods)

STREAM_INFER = "ModelStreamInfer"
"""The one method that streams, both messages and replies."""

MAX_INT32 = 2**31 - 1

M = TypeVar("M", bound=Message)


class InferenceService:
    """Answers the calls of the service `inference.GRPCInferenceService`.

    Args:
        config: The settings of the protocol.
        translator: Between messages and problems.
        batcher: Computes problems.
        quotas: The quotas of callers, the same as those of `Service`.
        is_ready: Returns whether the server takes calls.
        events: Told how far each call is; statistics of models listen to it from the first one on.
    """

    def __init__(
        self,
        config: ServerConfig,
        translator: Translator,
        batcher: Batcher,
        quotas: Quotas,
        is_ready: Callable[[], bool],
        events: Events | None = None,
    ) -> None:
        self._batcher = batcher
        self._quotas = quotas
        self._is_ready = is_ready
        self._events = Events() if events is None else events
        self._reached = self._events.reached
        self._statistics = ModelStatistics()
        self._is_counting = False
        self._models = models()
        self._regions = Regions(config.oip)
        self._decoder = Decoder(translator, config.limits, self._models, self._regions)
        self._max_batch_size = min(config.limits.max_output_samples, MAX_INT32)
        self._window_s = config.batching.window_s
        self._extensions = ["model_configuration", "parameters", "schedule_policy", "statistics"]
        if config.oip.shared_memory:
            self._extensions.append("system_shared_memory")
        self.methods: dict[str, Method] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "ModelInfer": self.infer,
            "SystemSharedMemoryStatus": self._system_status,
            "SystemSharedMemoryRegister": self._system_register,
            "SystemSharedMemoryUnregister": self._system_unregister,
            "CudaSharedMemoryStatus": self._cuda_status,
            "CudaSharedMemoryRegister": self._cuda_register,
            "CudaSharedMemoryUnregister": self._cuda_unregister,
        }

    async def infer(self, call: Call) -> bytes:
        """Returns the serialized `ModelInferResponse` to a `ModelInferRequest`."""
        if call.caller.quota is UNLIMITED:  # most are, and need no account
            return await self._admitted(call, None)
        with self._quotas.admit(call.caller, call.message_bytes) as resize:
            return await self._admitted(call, resize)

    async def _admitted(self, call: Call, resize: Resize | None) -> bytes:
        began = perf_counter()
        message, place = await call.receive()
        for tell in self._reached:
            tell(Stage.DECODE, (call,))
        decoding = perf_counter()
        inference = self._decoder.decode(message, call.caller.name)
        call.received_bytes = len(message)
        template = inference.template
        if resize is not None:
            resize(template.made.cost.size_bytes)
        standing = template.standing
        if not self._is_counting:  # only once this protocol is used
            self._events.add(self._statistics)
            self._is_counting = True
        counts = self._statistics.of(template.model.name)
        try:
            if inference.request is None:
                self._batcher.resize(place, template.made.cost.size_bytes)
                await asyncio.to_thread(inference.gather)
            counts.compute_input.add(perf_counter() - decoding)
            self._statistics.queued(call, counts, template.items)
            reply: Any = await self._batcher.submit(
                inference.request.job,  # type: ignore[union-attr]
                key=template.made.key,
                cost=template.made.cost,
                deadline=min(call.deadline, self._batcher.now() + standing.timeout_s),
                due_within_s=standing.due_within_s,
                caller=call.caller.name,
                call=call,
                place=place,
                reply=partial(self._encode, call, inference, counts),
            )
            if template.response.is_spread:
                reply, results = reply
                await asyncio.to_thread(inference.scatter, results)
        except BaseException:
            counts.fail.add(perf_counter() - began)
            raise
        finally:
            self._statistics.ended(call)
        for tell in self._reached:
            tell(Stage.SEND, (call,))
        call.sent_bytes = len(reply)
        counts.succeeded(template.items, perf_counter() - began)
        return reply  # type: ignore[no-any-return]

    def _encode(self, call: Call, inference: Inference, counts: Counts, finished: Finished) -> Any:
        """Returns the response, and copies of results if some go to shared memory."""
        for tell in self._reached:
            tell(Stage.ALLOCATE, (call,))
            tell(Stage.ENCODE, (call,))
        call.queue_s, call.compute_s = finished.queue_s, finished.compute_s
        began = perf_counter()
        response = inference.template.response
        reply = response.write(inference.request_id, finished)
        results = [bytes(value) for value in finished.result] if response.is_spread else None
        counts.compute_output.add(perf_counter() - began)
        return reply if results is None else (reply, results)

    async def _server_live(self, _call: Call) -> bytes:
        return inference_pb2.ServerLiveResponse(live=True).SerializeToString()

    async def _server_ready(self, _call: Call) -> bytes:
        return inference_pb2.ServerReadyResponse(ready=self._is_ready()).SerializeToString()

    async def _server_metadata(self, _call: Call) -> bytes:
        return inference_pb2.ServerMetadataResponse(
            name="stn-server", version=version("stn-server"), extensions=self._extensions
        ).SerializeToString()

    async def _model_ready(self, call: Call) -> bytes:
        request = await _received(call, inference_pb2.ModelReadyRequest)
        is_known = request.name in self._models and request.version in {"", VERSION}
        ready = is_known and self._is_ready()
        return inference_pb2.ModelReadyResponse(ready=ready).SerializeToString()

    async def _model_metadata(self, call: Call) -> bytes:
        model = self._named(await _received(call, inference_pb2.ModelMetadataRequest))
        return model.metadata().SerializeToString()

    async def _model_config(self, call: Call) -> bytes:
        model = self._named(await _received(call, inference_pb2.ModelConfigRequest))
        config = model.config(self._max_batch_size, self._window_s)
        return inference_pb2.ModelConfigResponse(config=config).SerializeToString()

    async def _model_statistics(self, call: Call) -> bytes:
        request = await _received(call, inference_pb2.ModelStatisticsRequest)
        names = [self._named(request).name] if request.name else list(self._models)
        found = self._statistics.messages(names)
        return inference_pb2.ModelStatisticsResponse(model_stats=found).SerializeToString()

    async def _repository_index(self, call: Call) -> bytes:
        request = await _received(call, inference_pb2.RepositoryIndexRequest)
        index = inference_pb2.RepositoryIndexResponse
        is_ready = self._is_ready()
        state = "READY" if is_ready else "UNAVAILABLE"
        listed = [] if request.ready and not is_ready else list(self._models)
        return index(
            models=[index.ModelIndex(name=name, version=VERSION, state=state) for name in listed]
        ).SerializeToString()

    def _named(self, request: Any) -> Model:
        return self._decoder.model(request.name, request.version)

    async def _system_status(self, call: Call) -> bytes:
        name = (await _received(call, inference_pb2.SystemSharedMemoryStatusRequest)).name
        regions = self._regions.of(call.caller.name)
        if name:
            regions = {name: self._regions.find(call.caller.name, "name", name)}
        response = inference_pb2.SystemSharedMemoryStatusResponse()
        for own, region in regions.items():
            status = response.regions[own]
            status.name, status.key = own, region.key
            status.offset, status.byte_size = region.offset, region.size_bytes
        return response.SerializeToString()

    async def _system_register(self, call: Call) -> bytes:
        request = await _received(call, inference_pb2.SystemSharedMemoryRegisterRequest)
        owner = call.caller.name
        self._regions.require_free(owner, request.name)
        region = await asyncio.to_thread(Region, request.key, request.offset, request.byte_size)
        self._regions.register(owner, request.name, region)
        return b""

    async def _system_unregister(self, call: Call) -> bytes:
        request = await _received(call, inference_pb2.SystemSharedMemoryUnregisterRequest)
        self._regions.unregister(call.caller.name, request.name)
        return b""

    async def _cuda_status(self, call: Call) -> bytes:
        request = await _received(call, inference_pb2.CudaSharedMemoryStatusRequest)
        if request.name:
            raise RegionNotFoundError("name")
        return b""

    async def _cuda_register(self, _call: Call) -> bytes:
        raise UnsupportedError("raw_handle", "memory of a GPU", ("raw_input_contents",))

    async def _cuda_unregister(self, _call: Call) -> bytes:
        """Accepts everything: there is nothing to remove, and load generators ask for it."""
        return b""


async def _received(call: Call, kind: type[M]) -> M:
    """Returns the message of a call that computes nothing."""
    message, _place = await call.receive()
    return parse(message, kind)
