"""Addresses to listen on: all that a name stands for, and the reason when one cannot be taken."""

import asyncio
import errno
import grp
import os
import socket
import stat
from contextlib import ExitStack

import pytest

from stn_server import listening
from stn_server.config import ConfigError
from stn_server.listening import listen_tcp, listen_unix, replica_address


class Binder:
    """Takes addresses as a server does, and remembers them."""

    def __init__(self, stack, refuse=()):
        self._stack = stack
        self._refuse = refuse
        self.taken = []

    def __call__(self, family, address):
        host, port = address[:2]
        if host in self._refuse:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        self.taken.append(f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}")
        server = self._stack.enter_context(socket.socket(family))
        server.bind(address)
        server.listen()
        return server.getsockname()[1]


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


class Loop(asyncio.SelectorEventLoop):
    """Finds the hosts that a test says."""

    def __init__(self, hosts):
        super().__init__()
        self._hosts = hosts

    async def getaddrinfo(self, host, port, **_options):
        if host not in self._hosts:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        families = [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, one) for one in self._hosts[host]
        ]
        return [(family, socket.SOCK_STREAM, 6, "", (one, port)) for family, one in families]


HOSTS = {
    "both": ["::1", "127.0.0.1"],
    "two": ["127.0.0.1", "127.0.0.2"],
    "twice": ["127.0.0.1", "127.0.0.1"],
    "far": ["192.0.2.1"],
    "127.0.0.1": ["127.0.0.1"],
    "::1": ["::1"],
    "fe80::1": ["fe80::1"],
    "fe80::1%lo": ["fe80::1"],
}


def listen(address, bind, name="listen"):
    """The port that was taken."""
    with asyncio.Runner(loop_factory=lambda: Loop(HOSTS)) as runner:
        return runner.run(listen_tcp(name, address, bind))


@pytest.mark.parametrize(
    ("host", "taken"),
    [
        ("both", ["[::1]:{}", "127.0.0.1:{}"]),
        ("two", ["127.0.0.1:{}", "127.0.0.2:{}"]),
        ("twice", ["127.0.0.1:{}"]),
        ("127.0.0.1", ["127.0.0.1:{}"]),
        ("[::1]", ["[::1]:{}"]),
    ],
)
def test_every_address_of_a_name_is_taken_at_one_port(stack, host, taken):
    """The first one chooses it."""
    bind = Binder(stack)
    port = listen(f"{host}:0", bind)
    assert bind.taken == [taken[0].format(0), *(one.format(port) for one in taken[1:])]


@pytest.mark.parametrize("host", ["both", "two", "127.0.0.1"])
def test_an_address_that_is_taken_refuses_the_name(stack, host):
    """Clients would reach whichever server their own order of addresses leads to."""
    owner = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    port = owner.getsockname()[1]
    message = (
        rf"^listen: expected a free address, got 127\.0\.0\.1:{port}.*, which is taken\. Choose"
    )
    with pytest.raises(ConfigError, match=message):
        listen(f"{host}:{port}", Binder(stack))


def test_a_wildcard_that_is_taken_is_refused(stack):
    """Of which the other kind of address may be free."""
    owner = socket.create_server(("::", 0), family=socket.AF_INET6)
    port = stack.enter_context(owner).getsockname()[1]
    HOSTS["::"] = ["::"]
    with pytest.raises(
        ConfigError, match=r"^listen: expected a free address, got \[::\]:\d+, which"
    ):
        listen(f"[::]:{port}", Binder(stack))


def test_a_kind_of_address_that_is_not_here_is_left_out(stack):
    """Where IPv6 is off, localhost still stands for ::1, and nobody else can be there."""
    bind = Binder(stack, refuse=["::1"])
    assert listen("both:0", bind) > 0
    assert bind.taken == ["127.0.0.1:0"]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "far:0",
            r"expected an address of this machine, got 192\.0\.2\.1:0 of far:0\. 0\.0\.0\.0 a",
        ),
        (
            "nowhere:1",
            r"expected a host that can be found, got nowhere:1: Name or service not know",
        ),
        (
            "[fe80::1]:0",
            r"expected the interface behind a link-local address, as \[fe80::1%eth0\]:50051, got",
        ),
        ("[fe80::1%lo]:0", r"expected an address of this machine, got \[fe80::1%lo\]:0\. "),
        ("*:1", r"expected a host, got \*:1\. 0\.0\.0\.0 are all addresses of this machine"),
    ],
)
def test_a_host_that_is_not_here_has_its_reason(stack, address, message):
    """That of the system, in words."""
    with pytest.raises(ConfigError, match=f"^metrics_listen: {message}"):
        listen(address, Binder(stack), "metrics_listen")


def test_what_is_no_host_name_has_its_reason(stack):
    """As the real resolver sees it."""
    with pytest.raises(
        ConfigError, match=r"^listen: expected a host that can be found, got \.:1: "
    ):
        asyncio.run(listen_tcp("listen", ".:1", Binder(stack)))


class UnixBinder:
    """Listens on a path as servers do, and remembers the permissions of its first moment."""

    def __init__(self, stack, path):
        self._stack = stack
        self._path = path
        self.modes = []

    def __call__(self):
        server = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(str(self._path))
        self.modes.append(stat.S_IMODE(self._path.stat().st_mode))
        server.listen()


@pytest.mark.parametrize("form", ["unix:", "unix://"])
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
def test_a_socket_has_its_mode_from_the_beginning(stack, tmp_path, form, mode):
    """And the umask of the process is what it was."""
    before = os.umask(0o027)
    try:
        listen_unix("listen", f"{form}{tmp_path}/a", mode, UnixBinder(stack, tmp_path / "a"))
        listen_unix("listen", f"{form}{tmp_path}/b", None, UnixBinder(stack, tmp_path / "b"))
    finally:
        assert os.umask(before) == 0o027
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o750


def test_a_socket_that_nobody_listens_on_is_replaced(stack, tmp_path):
    """As a server that was killed leaves it."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "stn.sock"))
    bind = UnixBinder(stack, tmp_path / "stn.sock")
    listen_unix("listen", f"unix:{tmp_path}/stn.sock", None, bind)


def test_a_socket_that_answers_is_left_alone(stack, tmp_path):
    """Also when so many wait there that one more would have to wait, too."""
    address, owner = f"unix:{tmp_path}/stn.sock", stack.enter_context(socket.socket(socket.AF_UNIX))
    owner.bind(str(tmp_path / "stn.sock"))
    owner.listen(0)
    for _ in range(3):
        with pytest.raises(
            ConfigError, match=r"^listen: expected a free address, got unix:.*answers"
        ):
            listen_unix("listen", address, None, UnixBinder(stack, tmp_path / "stn.sock"))


def refused(path, prepare, message):
    """A path that cannot be taken, and why."""
    return pytest.param(path, prepare, message, id=message)


@pytest.mark.parametrize(
    ("path", "prepare", "message"),
    [
        refused(
            "none/s", lambda _: None, r"expected a folder for unix:\S+/none/s, got none\. Create"
        ),
        refused(
            "f/s", lambda p: p.parent.touch(), r"expected a folder for .*, got a file in its pl"
        ),
        refused(
            "f", lambda p: p.touch(), r"expected a socket or nothing at \S+/f, got another file"
        ),
        refused(
            "d", lambda p: p.mkdir(), r"expected a socket or nothing at \S+/d, got another file"
        ),
    ],
)
def test_a_path_that_cannot_be_taken_has_its_reason(stack, tmp_path, path, prepare, message):
    """What is there stays as it is."""
    prepare(tmp_path / path)
    before = sorted(tmp_path.rglob("*"))
    bind = UnixBinder(stack, tmp_path / path)
    with pytest.raises(ConfigError, match=f"^listen: {message}"):
        listen_unix("listen", f"unix:{tmp_path / path}", None, bind)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            errno.EACCES,
            r"expected a folder that this user may write to for unix:/p, got no permiss",
        ),
        (errno.EROFS, r"expected a folder that can be written to for unix:/p, got a read-only fil"),
        (errno.ENOSPC, r"expected unix:/p to be free, got No space left on device"),
    ],
)
def test_what_the_system_does_not_allow_has_its_reason(number, message):
    """Also what is in no table, in the words of the system."""
    error = OSError(number, os.strerror(number))
    with pytest.raises(ConfigError, match=f"^listen: {message}"):
        raise listening._refused("listen", listening.UNIX_REASONS, "unix:/p", error)


@pytest.mark.parametrize(("mode", "expected"), [(None, 0o660), (0o666, 0o666)])
def test_a_socket_is_its_groups_before_others_may_use_it(stack, tmp_path, mode, expected):
    """By number here; nobody but the server has it while it is still the process's group."""
    path = tmp_path / "s"
    sockets = UnixBinder(stack, path)
    number = os.getgid() + 1 if os.geteuid() == 0 else os.getgroups()[0]
    listen_unix("listen", f"unix:{path}", mode, sockets, str(number))
    assert sockets.modes == [0o600]
    assert path.stat().st_gid == number
    assert stat.S_IMODE(path.stat().st_mode) == expected


def test_a_group_has_a_name(stack, tmp_path):
    """That of the system's list."""
    path = tmp_path / "s"
    name = grp.getgrgid(os.getgid()).gr_name
    listen_unix("listen", f"unix:{path}", 0o660, UnixBinder(stack, path), name)
    assert path.stat().st_gid == os.getgid()


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("no-such-group", "local.dir: expected a group of this system, by name or number, got 'no"),
        ("99999999999", "local.dir: expected a group that this user is in, got '99999999999'"),
    ],
)
def test_a_group_that_is_none_is_refused(group, message, stack, tmp_path):
    """Before anybody is served."""
    bind = UnixBinder(stack, tmp_path / "s")
    with pytest.raises(ConfigError, match=message):
        listen_unix("local.dir", f"unix:{tmp_path}/s", 0o660, bind, group)


def test_a_name_service_that_does_not_answer_is_not_an_unknown_name():
    """It may answer the next time; a wrong name never does."""

    class Silent(asyncio.SelectorEventLoop):
        async def getaddrinfo(self, *_host_and_port, **_options):
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with (
        asyncio.Runner(loop_factory=Silent) as runner,
        pytest.raises(ConfigError, match="got stn:1, and no answer from the name service"),
    ):
        runner.run(listen_tcp("listen", "stn:1", lambda _family, _address: 1))


UNIX_WORDS = {
    errno.ENOENT: "expected a folder for unix:/a/s, got none. Create it.",
    errno.ENOTDIR: "expected a folder for unix:/a/s, got a file in its place.",
    errno.EACCES: "expected a folder that this user may write to for unix:/a/s, got no permission.",
    errno.EPERM: "expected nothing of another user at unix:/a/s, got a socket. Remove it.",
    errno.EROFS: "expected a folder that can be written to for unix:/a/s, got a read-only file",
}


@pytest.mark.parametrize("number", UNIX_WORDS)
def test_every_reason_has_its_own_words(number):
    """Folders that are missing or are none, permissions, and read-only file systems."""
    found = listening._refused(
        "listen", listening.UNIX_REASONS, "unix:/a/s", OSError(number, os.strerror(number))
    )
    assert str(found).startswith(f"listen: {UNIX_WORDS[number]}")
    assert set(listening.UNIX_REASONS) == set(UNIX_WORDS)


ADDRESSES = [
    ("", ["127.0.0.2:7"], "127.0.0.2:7"),
    ("", ["unix:/a", "[::1]:7", "127.0.0.2:8"], "[::1]:7"),
    ("", ["unix:/a"], ""),
    ("", ["localhost:7"], ""),
    ("10.0.0.7", ["0.0.0.0:50051"], "10.0.0.7:50051"),
    ("fd00::7", ["[::]:50051"], "[fd00::7]:50051"),
    ("fd00::7", ["unix:/a"], ""),
    ("10.0.0.7:6", ["0.0.0.0:50051"], "10.0.0.7:6"),
    ("[FD00:0::7]:6", ["unix:/a"], "[fd00::7]:6"),
    ("10.0.0.7:0", ["localhost:7"], "10.0.0.7:7"),
]


@pytest.mark.parametrize(("setting", "targets", "expected"), ADDRESSES)
def test_a_replica_knows_its_address(setting, targets, expected):
    """As it is set, else as it listens, in numbers; a name might be that of all replicas."""
    assert replica_address(setting, targets) == expected


def test_a_replica_that_listens_everywhere_has_the_address_of_the_way_out(monkeypatch):
    """Which no setting knows: one of this machine, or none where there is no network."""
    found = replica_address("", ["0.0.0.0:7"])
    host = found.rpartition(":")[0]
    assert found in {"", f"{host}:7"}
    with socket.socket() as own:
        own.bind((host, 0))  # no machine has another one's
    monkeypatch.setattr(listening, "ELSEWHERE", {4: "no address", 6: "no address"})
    assert replica_address("", ["0.0.0.0:7"]) == ""
    assert replica_address("", ["[::]:7"]) == ""
