"""What the texts behind -L, -R and -D mean; the forms and their meanings are those of OpenSSH 9.2's `parse_forward`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.errors import UsageError
from alknet.ssh.forward_specs import ANYWHERE, LOOPBACK, Forward, Option, Port, SocketPath, parse_forward


@pytest.mark.parametrize(
    ("text", "listen", "to"),
    [
        ("8080:db:5432", Port(LOOPBACK, 8080), Port("db", 5432)),
        (" 8080:db:5432", Port(LOOPBACK, 8080), Port("db", 5432)),
        ("localhost:8080:db:5432", Port(LOOPBACK, 8080), Port("db", 5432)),
        ("127.0.0.2:8080:db:5432", Port("127.0.0.2", 8080), Port("db", 5432)),
        ("[::1]:8080:[2001:db8::1]:5432", Port("::1", 8080), Port("2001:db8::1", 5432)),
        ("8080:[2001:db8::1]:5432", Port(LOOPBACK, 8080), Port("2001:db8::1", 5432)),
        (":8080:db:5432", Port(ANYWHERE, 8080), Port("db", 5432)),
        ("*:8080:db:5432", Port(ANYWHERE, 8080), Port("db", 5432)),
        ("8080:/run/db.sock", Port(LOOPBACK, 8080), SocketPath("/run/db.sock")),
        ("*:8080:/run/db.sock", Port(ANYWHERE, 8080), SocketPath("/run/db.sock")),
        ("/tmp/here:db:5432", SocketPath("/tmp/here"), Port("db", 5432)),
        ("/tmp/here:/run/db.sock", SocketPath("/tmp/here"), SocketPath("/run/db.sock")),
        ("./here:/run/db.sock", SocketPath("./here"), SocketPath("/run/db.sock")),
        ("8080:db:5432:", Port(LOOPBACK, 8080), Port("db", 5432)),  # ssh takes that, too
        (r"/tmp/a\:b:/run/c\\d", SocketPath("/tmp/a:b"), SocketPath("/run/c\\d")),
        (r"8080:\d\b:1", Port(LOOPBACK, 8080), Port("db", 1)),
    ],
)
@pytest.mark.parametrize("option", ["-L", "-R"])
def test_a_forward_names_both_its_ends(
    option: Option, text: str, listen: Port | SocketPath, to: Port | SocketPath
) -> None:
    assert parse_forward(option, text) == Forward(option, listen, to)


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("1080", Port(LOOPBACK, 1080)),
        ("*:1080", Port(ANYWHERE, 1080)),
        (":1080", Port(ANYWHERE, 1080)),
        ("[::1]:1080", Port("::1", 1080)),
        ("192.0.2.1:1080", Port("192.0.2.1", 1080)),
        ("/tmp/socks", SocketPath("/tmp/socks")),
    ],
)
def test_a_socks_forward_names_one(text: str, listen: Port | SocketPath) -> None:
    assert parse_forward("-D", text) == Forward("-D", listen, None)


def test_the_far_side_may_choose_its_port() -> None:
    assert parse_forward("-R", "0:localhost:80").listen == Port(LOOPBACK, 0)
    for option, text in (("-L", "0:localhost:80"), ("-D", "0")):
        with pytest.raises(UsageError, match="0 is no port to listen on"):
            parse_forward(option, text)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["-L", "-R", "-D"])
@pytest.mark.parametrize(
    "text",
    [
        "", " ", ":", "::", "8080:db", "8080::80", "8080:db:0", "8080:db:", "8080:db:http", "8080:db:65536",
        "65536:db:80", "-1:db:80", "+1:db:80", "1 :db:80", "٣:db:80", "a:8080:db:80:x", "::1:8080:db:80",
        "[::1:8080:db:80", "[::1]8080:db:80", "/a:/b:/c", "8080:/a:80", "a:/b:1:2", "8080:db:80\\", "/a:db",
        "8080:d\nb:80", "/" + "x" * 107 + ":db:80", "8080:" + "x" * 1024 + ":80", "/a\0b:db:80",
    ],
)  # fmt: skip
def test_what_is_no_forward_is_refused_with_the_forms_that_there_are(option: Option, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_forward(option, text)
    assert str(caught.value).startswith(f"{option} {text!r}: ")
    assert caught.value.hint.startswith("it is ")


def test_socks_for_the_far_side_is_not_served() -> None:
    with pytest.raises(UsageError, match="SOCKS for the far side's programs is not served"):
        parse_forward("-R", "1080")


@given(st.sampled_from(["-L", "-R", "-D"]), st.text(alphabet="0189:[]/\\*a.\0 ", max_size=30))
def test_every_text_is_a_forward_or_a_usage_error(option: Option, text: str) -> None:
    try:
        forward = parse_forward(option, text)
    except UsageError:
        return
    assert (forward.to is None) == (option == "-D")
    assert forward.is_remote == (option == "-R")
    for end in (forward.listen, forward.to):
        assert not isinstance(end, Port) or 0 <= end.port <= 65535


_ports = st.integers(1, 65535)
_hosts = st.sampled_from([ANYWHERE, LOOPBACK, "127.0.0.1", "::1", "2001:db8::1", "db", "a-b.example"])
_paths = st.text(alphabet="abc:\\[]./", min_size=1, max_size=20).map(lambda path: SocketPath(f"/{path}"))
_ends = st.builds(Port, _hosts, _ports) | _paths


@given(_ends, st.builds(Port, _hosts.filter(bool), _ports) | _paths)
def test_what_is_written_with_brackets_and_backslashes_is_read_as_it_was_meant(
    listen: Port | SocketPath, to: Port | SocketPath
) -> None:
    def written(end: Port | SocketPath) -> str:
        if isinstance(end, SocketPath):
            return end.path.replace("\\", "\\\\").replace(":", "\\:")
        return str(end)

    assert parse_forward("-L", f"{written(listen)}:{written(to)}") == Forward("-L", listen, to)


def test_a_forward_says_what_it_does() -> None:
    assert str(parse_forward("-L", "*:80:[::1]:81")) == "-L *:80 to [::1]:81"
    assert str(parse_forward("-R", "/a:db:1")) == "-R /a to db:1"
    assert str(parse_forward("-D", "1080")) == "-D localhost:1080 to where SOCKS asks"
