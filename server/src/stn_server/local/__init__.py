"""The local transport: calls of processes on this host, by ttrpc on a unix socket."""
