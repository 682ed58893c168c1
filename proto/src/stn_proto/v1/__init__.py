"""Version 1 of the contract: protobuf package `stn.v1`, generated code."""
