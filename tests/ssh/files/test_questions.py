"""The socket to the node: what is said on it, and what is made of whatever comes."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.errors import BrokenError, DeniedError
from alknet.guard import Barred
from alknet.ssh.files.questions import MAX_ENDED, READ, WRITE, Questions


class Node:
    """The other side."""

    def __init__(self) -> None:
        self.socket, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._theirs.setblocking(False)
        self.questions = Questions(self._theirs.fileno())

    def say(self, message: Any) -> None:
        self.socket.send(json.dumps(message).encode())

    def heard(self) -> Any:
        return json.loads(self.socket.recv(100_000))

    def close(self) -> None:
        self.socket.close()
        self._theirs.close()


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.close()


def test_a_question_and_its_end(node: Node) -> None:
    node.say({"answer": 7, "allowed": False})  # to something else
    node.say({"answer": 1, "allowed": True, "words": ""})
    assert node.questions.ask(READ, b'/a\xff"\n') == 1
    assert node.heard() == {"ask": 1, "action": "read", "path": '/a\udcff"\n'}
    node.questions.done(1, count=5)
    node.questions.flush()
    assert node.heard() == {"done": 1, "outcome": "ok", "bytes": 5}
    assert node.questions.denials == 0


def test_ends_are_said_with_the_next_question_or_when_there_are_many(node: Node) -> None:
    node.say({"answer": 1, "allowed": True})
    for number in (7, 8):
        node.questions.done(number)
    assert node.questions.ask(READ, b"/") == 1
    assert [node.heard().get("done") for _ in range(3)] == [7, 8, None]
    for number in range(MAX_ENDED):
        node.questions.done(number, "failed")
    assert [node.heard()["done"] for _ in range(MAX_ENDED)] == [*range(MAX_ENDED)]


@pytest.mark.parametrize("answer", [{"allowed": False}, {"allowed": 1}, {"allowed": "true"}, {}])
def test_everything_but_a_yes_is_a_no(node: Node, answer: dict[str, Any]) -> None:
    node.say({"answer": 1, "words": "no (den_1)", **answer})
    with pytest.raises(DeniedError, match=r"no \(den_1\)"):
        node.questions.ask(WRITE, b"/")
    node.say({"answer": 2, **answer})
    with pytest.raises(DeniedError, match="does not allow"):
        node.questions.ask(WRITE, b"/")
    assert node.questions.denials == 2


def test_what_is_out_of_reach_is_refused_whatever_the_node_says(node: Node) -> None:
    for number, allowed in ((1, False), (2, True)):
        node.say({"answer": number, "allowed": allowed, "words": "far (den_2)"})
        error = node.questions.barred(Barred("fs.protected", "far"), WRITE, b"/x")
        assert str(error) == ("far" if allowed else "far (den_2)")
        expected = {"barred": number, "rule": "fs.protected", "reason": "far", "action": "write", "path": "/x"}
        assert node.heard() == expected


def test_a_node_that_has_gone_is_noticed(node: Node) -> None:
    node.socket.close()
    node.questions.done(1)
    for act in (node.questions.flush, lambda: node.questions.ask(READ, b"/"), node.questions.receive):
        with pytest.raises(BrokenError):
            act()


@given(data=st.binary(min_size=1, max_size=50) | st.sampled_from([b"[]", b"null", b"{", b'{"answer": 1}']))
def test_whatever_comes_is_a_message_or_the_end(data: bytes) -> None:
    node = Node()
    node.socket.send(data)
    try:
        assert isinstance(node.questions.receive(), dict)
    except BrokenError:
        pass
    finally:
        node.close()
