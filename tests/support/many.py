"""Messages of ComputeMany, built with plain protobuf messages, as any client would build them."""

from __future__ import annotations

from stn_proto.v1 import many_pb2

FIELDS = {
    "Warp": "warp",
    "WarpGradients": "warp_gradients",
    "GenerateGrid": "generate_grid",
    "GenerateGridGradients": "generate_grid_gradients",
    "Objective": "objective",
}


def compute_many(*calls):
    """A message of requests by the method, each given as (method, request)."""
    message = many_pb2.ComputeManyRequest()
    for method, request in calls:
        add(message, method, request)
    return message


def add(message, method, request):
    """One more call of a message; its payloads go to the end of those that are there."""
    call = message.calls.add(payload_count=len(request.payloads))
    nested = getattr(call, FIELDS[method])
    nested.CopyFrom(request)
    nested.ClearField("payloads")
    nested.SetInParent()
    message.payloads.extend(request.payloads)
    return call


def replies(serialized):
    """What became of the calls: the reply of each as by its own method, or a Status."""
    message = many_pb2.ComputeManyReply.FromString(serialized)
    found, start = [], 0
    for nested in message.replies:
        outcome = getattr(nested, nested.WhichOneof("outcome"))
        end = start + nested.payload_count
        if not isinstance(outcome, many_pb2.Status):
            outcome.payloads.extend(message.payloads[start:end])
        found.append(outcome)
        start = end
    assert start == len(message.payloads)
    return found
