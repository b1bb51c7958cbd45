"""Which of the words on a command line are on a peer."""

import pytest

from alknet.cli.cp import explained, print_failure, print_kept, split_peer, summary
from alknet.errors import DeniedError, UnavailableError
from alknet.ssh.transfer import Progress


@pytest.mark.parametrize(
    ("text", "peer", "path"),
    [
        ("web:file", "web", "file"),
        ("web:", "web", ""),
        ("web:/etc/passwd", "web", "/etc/passwd"),
        ("web:a:b", "web", "a:b"),
        (".:file", ".", "file"),
        ("bob@web:file", "bob@web", "file"),
        ("web.example.org:7022:file", "web.example.org:7022", "file"),
        ("web:7022:", "web:7022", ""),
        ("web:7022", "web", "7022"),
        ("web:./7022:x", "web", "./7022:x"),
        ("[::1]:file", "[::1]", "file"),
        ("[::1]:7022:file", "[::1]:7022", "file"),
        ("bob@[fe80::1]:a:b", "bob@[fe80::1]", "a:b"),
        ("file", None, "file"),
        ("./a:b", None, "./a:b"),
        ("/a:b", None, "/a:b"),
        ("dir/a:b", None, "dir/a:b"),
        (":file", None, ":file"),
        ("[::1]", None, "[::1]"),
        ("[a]b:c", None, "[a]b:c"),
        ("", None, ""),
    ],
)
def test_what_stands_before_the_colon_is_a_peer(text: str, peer: str | None, path: str) -> None:
    assert split_peer(text) == (peer, path)


@pytest.mark.parametrize(
    ("path", "hint"), [("7022", "7022 is the path here; with the port 7022 it is web:7022:"), ("x", "")]
)
def test_a_port_that_was_taken_for_a_path_is_explained(path: str, hint: str) -> None:
    with pytest.raises(UnavailableError) as caught, explained("web", path):
        raise UnavailableError("web cannot be reached")
    assert caught.value.hint == hint


def test_what_is_said_of_failures_and_of_parts(capsys: pytest.CaptureFixture[str]) -> None:
    print_failure(DeniedError("web:x\x1b[2J: no\nsecond line"))
    progress = Progress(files=3, kept=[f"{n}.part" for n in range(9)])
    print_kept(progress)
    assert summary(progress)["kept"] == progress.kept
    assert summary(progress)["files"] == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["alknet: web:x\\x1b[2J: no", "        second line"]
    assert lines[2] == "alknet: kept 0.part: the same command with --resume goes on with it"
    assert lines[-1] == "alknet: and 4 more"
    assert len(lines) == 8
