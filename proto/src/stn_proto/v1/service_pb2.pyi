from stn_proto.v1 import many_pb2 as _many_pb2
from stn_proto.v1 import objective_pb2 as _objective_pb2
from stn_proto.v1 import resident_pb2 as _resident_pb2
from stn_proto.v1 import server_info_pb2 as _server_info_pb2
from stn_proto.v1 import warp_pb2 as _warp_pb2
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor
