"""What runs with Ray Serve, which has an environment of its own: `make test-ray`."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("ray") else ["test_*.py"]
