"""A reload is a transaction: all of it or nothing, one at a time, and what must wait is said."""

import asyncio
import logging
import ssl
import threading
from pathlib import Path

import pytest

from alknet import reload as reload_module
from alknet.access import Token
from alknet.alpn import tls_listener
from alknet.alpn.tls_listener import TlsIdentity
from alknet.call.operations import Operation, operation, operations_of
from alknet.call.registry import Registry
from alknet.certificates import Certificate, make_certificate, write_certificate
from alknet.clock import ManualClock
from alknet.config.certificate import load_tls
from alknet.config.home import Home
from alknet.config.load import load
from alknet.config.model import Settings
from alknet.errors import ConfigError
from alknet.reload import Reloader, Report, Running

BEFORE = '[node]\nname = "before"\n[ssh]\nexec = true\n'


class Node:
    """A home, a reloader on it, and everything that was applied."""

    def __init__(self, path: Path) -> None:
        path.chmod(0o700)
        self.home = Home(path)
        self.write(BEFORE)
        self.home.keys.mkdir()
        self.swapped: list[Running] = []
        self.clock = ManualClock()
        self.tokens: dict[str, Token] = {}
        self.operations: dict[str, tuple[Operation, ...]] = {}
        self.loaded: list[tuple[str, ...]] = []
        settings = load(self.home)
        identity = TlsIdentity.of(load_tls(self.home, settings.tls, now=self.clock.wall()), ["test"])
        self.reloader = Reloader(
            self.home,
            Running(settings, identity, Registry(), {}),
            apply=self.swapped.append,
            load_registry=self.load_registry,
            load_tokens=lambda: dict(self.tokens),
            clock=self.clock,
        )

    def load_registry(self, settings: Settings) -> Registry:
        modules = settings.services.modules
        self.loaded.append(modules)
        for name in modules:
            if name not in self.operations:
                raise ConfigError(f"[services] modules: {name!r}: No module named {name!r}", hint="install it")
        return Registry(one for name in modules for one in self.operations[name])

    @property
    def applied(self) -> list[Settings]:
        return [running.settings for running in self.swapped]

    @property
    def certificates(self) -> list[Certificate]:
        return [running.identity.certificate for running in self.swapped]

    @property
    def settings(self) -> Settings:
        """What is in force."""
        return self.reloader.running.settings

    def write(self, text: str) -> None:
        self.home.config.write_text(text)
        self.home.config.chmod(0o600)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def test_a_live_key_takes_effect(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "alknet")
    node.write(BEFORE.replace("true", "false"))
    assert await node.reloader.reload("test") == Report(("ssh.exec",), ())
    assert node.swapped == [node.reloader.running]
    assert not node.settings.ssh.exec
    assert "reloaded cause=test changed=ssh.exec" in caplog.text


async def test_unchanged_files_apply_nothing(node: Node) -> None:
    before = node.reloader.running
    assert await node.reloader.reload("test") == Report((), ())
    assert node.applied == []
    assert node.reloader.running is before


@pytest.mark.parametrize("text", ["[ssh]\nexce = false\n", "not toml", "[ssh]\nexec = false\n[node]\nlisten = []\n"])
async def test_a_broken_file_changes_nothing_and_says_why(
    node: Node, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = node.reloader.running
    node.write(text)
    with pytest.raises(ConfigError) as caught:
        await node.reloader.reload("SIGHUP")
    assert node.applied == []
    assert node.reloader.running is before
    assert f"reload (SIGHUP) changed nothing: {caught.value}" in caplog.text


async def test_every_line_of_an_error_is_a_log_line(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.write("[ssh]\nexce = 1\nshel = 1\n")
    with pytest.raises(ConfigError):
        await node.reloader.reload("test")
    assert len([record for record in caplog.records if "changed nothing" in record.message]) == 2


async def test_a_broken_file_that_is_mended_takes_effect(node: Node) -> None:
    node.write("not toml")
    with pytest.raises(ConfigError):
        await node.reloader.reload("test")
    node.write(BEFORE.replace("true", "false"))
    assert (await node.reloader.reload("test")).changed == ("ssh.exec",)


async def test_a_key_that_needs_a_restart_is_reported_and_kept(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.write(BEFORE.replace("before", "after"))
    assert await node.reloader.reload("test") == Report(("node.name",), ("node.name",))
    assert node.settings.node.name == "before"
    assert node.applied == []
    assert "restart needed keys=node.name" in caplog.text


async def test_live_keys_take_effect_beside_one_that_waits(node: Node) -> None:
    node.write(BEFORE.replace("before", "after").replace("true", "false"))
    report = await node.reloader.reload("test")
    assert sorted(report.changed) == ["node.name", "ssh.exec"]
    assert report.needs_restart == ("node.name",)
    assert (node.applied[0].node.name, node.applied[0].ssh.exec) == ("before", False)


async def test_a_waiting_key_is_reported_until_it_is_taken_back(node: Node) -> None:
    node.write(BEFORE.replace("before", "after").replace("true", "false"))
    await node.reloader.reload("test")
    assert await node.reloader.reload("test") == Report(("node.name",), ("node.name",))
    node.write(BEFORE.replace("true", "false"))
    assert await node.reloader.reload("test") == Report((), ())


async def test_reloads_at_the_same_time_happen_one_after_another(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, most = 0, 0
    guard = threading.Lock()

    def counted(home: Home) -> Settings:
        nonlocal reading, most
        with guard:
            reading += 1
            most = max(most, reading)
        try:
            return load(home)
        finally:
            with guard:
                reading -= 1

    monkeypatch.setattr(reload_module, "load", counted)
    node.write(BEFORE.replace("true", "false"))
    reports = await asyncio.gather(*(node.reloader.reload(str(number)) for number in range(5)))
    assert most == 1
    assert [report.changed for report in reports] == [("ssh.exec",), (), (), (), ()]
    assert len(node.applied) == 1


async def test_the_loop_goes_on_while_files_are_read(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk must not stop the node: here reading waits for something that only the loop does."""
    go = threading.Event()

    def slow(home: Home) -> Settings:
        assert go.wait(5)
        return load(home)

    monkeypatch.setattr(reload_module, "load", slow)
    asyncio.get_running_loop().call_soon(go.set)
    assert await node.reloader.reload("test") == Report((), ())


# --- the certificate --------------------------------------------------------------------------------------------

FILES = '[tls]\nmode = "files"\ncert = "{0}/crt.pem"\nkey = "{0}/key.pem"\n'


def put_certificate(node: Node) -> Certificate:
    """Replace the certificate's files by a new pair."""
    made = make_certificate(("localhost",), now=node.clock.wall())
    write_certificate(made, node.home.path / "crt.pem", node.home.path / "key.pem")
    return made


@pytest.fixture
async def with_files(node: Node) -> Node:
    """A node in mode "files" that nothing was applied to yet."""
    put_certificate(node)
    node.write(BEFORE + FILES.format(node.home.path))
    await node.reloader.reload("test")
    node.swapped.clear()
    return node


async def test_other_settings_bring_another_certificate(node: Node) -> None:
    made = put_certificate(node)
    own = node.reloader.running.identity.certificate
    node.write(BEFORE + FILES.format(node.home.path))
    assert (await node.reloader.reload("test")).changed == ("tls.mode", "tls.cert", "tls.key", "tls.certificate")
    assert node.certificates == [made]
    node.write(BEFORE)
    assert (await node.reloader.reload("test")).changed == ("tls.mode", "tls.cert", "tls.key", "tls.certificate")
    assert node.certificates == [made, own]


async def test_a_replaced_certificate_takes_effect_with_the_same_settings(
    with_files: Node, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "alknet")
    settings, made = with_files.settings, put_certificate(with_files)
    assert await with_files.reloader.reload("test") == Report(("tls.certificate",), ())
    assert (with_files.applied, with_files.certificates) == ([settings], [made])
    identity = with_files.reloader.running.identity
    assert (identity.certificate, identity.alpns) == (made, ("test",))
    assert "reloaded cause=test changed=tls.certificate" in caplog.text
    assert await with_files.reloader.reload("test") == Report((), ())


async def test_a_wrong_certificate_refuses_everything_and_says_which_file(
    with_files: Node, caplog: pytest.LogCaptureFixture
) -> None:
    running = with_files.reloader.running
    (with_files.home.path / "crt.pem").write_text("broken")
    with_files.home.config.write_text(with_files.home.config.read_text().replace("true", "false"))
    with pytest.raises(ConfigError, match=r"crt\.pem: is not a PEM file"):
        await with_files.reloader.reload("test")
    assert with_files.applied == []
    assert with_files.reloader.running is running
    assert "reload (test) changed nothing" in caplog.text
    made = put_certificate(with_files)
    assert (await with_files.reloader.reload("test")).changed == ("ssh.exec", "tls.certificate")
    assert with_files.certificates == [made]


async def test_a_certificate_that_cannot_be_served_refuses_everything(
    with_files: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found before anything is applied, not when the first client comes."""
    put_certificate(with_files)

    def weak(*_: object) -> ssl.SSLContext:
        error = ssl.SSLError(1, "error")
        error.reason = "EE_KEY_TOO_SMALL"
        raise error

    monkeypatch.setattr(tls_listener, "server_context", weak)
    with pytest.raises(ConfigError, match="cannot be served: ee key too small"):
        await with_files.reloader.reload("test")
    assert with_files.applied == []


async def test_a_right_is_taken_away_although_the_certificate_has_expired(with_files: Node) -> None:
    with_files.clock.jump(20 * 365 * 24 * 3600)
    with_files.home.config.write_text(with_files.home.config.read_text().replace("true", "false"))
    assert (await with_files.reloader.reload("test")).changed == ("ssh.exec",)


async def test_the_certificate_waits_for_no_restart(with_files: Node) -> None:
    put_certificate(with_files)
    with_files.home.config.write_text(with_files.home.config.read_text().replace("before", "after"))
    assert await with_files.reloader.reload("test") == Report(("tls.certificate", "node.name"), ("node.name",))
    assert [settings.node.name for settings in with_files.applied] == ["before"]


# --- tokens -----------------------------------------------------------------------------------------------------


def token(prefix: str, *scopes: str) -> Token:
    return Token(prefix, "alice", frozenset(scopes), b"digest")


async def test_a_new_token_takes_effect_with_the_same_settings(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "alknet")
    before = node.reloader.running
    node.tokens["abcdefgh"] = token("abcdefgh", "fs:read")
    assert await node.reloader.reload("test") == Report(("tokens",), ())
    (after,) = node.swapped
    assert after.tokens == node.tokens
    assert (after.settings, after.identity, after.registry) == (before.settings, before.identity, before.registry)
    assert "reloaded cause=test changed=tokens" in caplog.text
    assert "abcdefgh" not in caplog.text
    assert await node.reloader.reload("test") == Report((), ())


async def test_a_token_that_changes_or_goes_takes_effect(node: Node) -> None:
    node.tokens = {"abcdefgh": token("abcdefgh", "fs:read"), "ijklmnop": token("ijklmnop", "*")}
    await node.reloader.reload("test")
    node.tokens["abcdefgh"] = token("abcdefgh")
    assert (await node.reloader.reload("test")).changed == ("tokens",)
    del node.tokens["ijklmnop"]
    assert (await node.reloader.reload("test")).changed == ("tokens",)
    assert node.reloader.running.tokens == {"abcdefgh": token("abcdefgh")}
    assert len(node.swapped) == 3


async def test_with_a_broken_file_no_token_takes_effect(node: Node) -> None:
    node.write("not toml")
    node.tokens["abcdefgh"] = token("abcdefgh", "*")
    with pytest.raises(ConfigError):
        await node.reloader.reload("test")
    assert (node.swapped, node.reloader.running.tokens) == ([], {})


async def test_a_token_does_not_wait_for_a_restart_that_something_else_needs(node: Node) -> None:
    node.write(BEFORE.replace("before", "after"))
    node.tokens["abcdefgh"] = token("abcdefgh")
    assert await node.reloader.reload("test") == Report(("tokens", "node.name"), ("node.name",))
    assert node.reloader.running.tokens == node.tokens
    assert node.settings.node.name == "before"


# --- operations -------------------------------------------------------------------------------------------------


@operation("shop/order")
async def order() -> None: ...


@operation("shop/stock")
async def stock() -> None: ...


@operation("shop/order")
async def another_order() -> None: ...


SERVICES = BEFORE + "[services]\nmodules = {}\n"


def serve(node: Node, *modules: str) -> None:
    node.operations = {
        "shop": operations_of(order),
        "more": operations_of(stock),
        "rival": operations_of(another_order),
    }
    node.write(SERVICES.format(list(modules)))


async def test_the_registry_is_replaced_whole(node: Node) -> None:
    serve(node, "shop")
    assert await node.reloader.reload("test") == Report(("services.modules",), ())
    serve(node, "more")
    assert (await node.reloader.reload("test")).changed == ("services.modules",)
    assert [list(running.registry) for running in node.swapped] == [["shop/order"], ["shop/stock"]]
    assert node.loaded == [("shop",), ("more",)]


async def test_operations_are_loaded_again_only_when_others_are_asked_for(node: Node) -> None:
    serve(node, "shop")
    await node.reloader.reload("test")
    registry = node.reloader.running.registry
    node.write(SERVICES.format(["shop"]).replace("true", "false"))
    node.tokens["abcdefgh"] = token("abcdefgh")
    await node.reloader.reload("test")
    assert node.reloader.running.registry is registry
    assert node.loaded == [("shop",)]


async def test_a_module_that_cannot_be_loaded_changes_nothing(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    serve(node, "shop", "absent")
    before = node.reloader.running
    node.tokens["abcdefgh"] = token("abcdefgh")
    with pytest.raises(ConfigError, match="No module named 'absent'") as caught:
        await node.reloader.reload("test")
    assert caught.value.hint == "install it"
    assert (node.swapped, node.reloader.running) == ([], before)
    assert "reload (test) changed nothing: [services] modules: 'absent'" in caplog.text
    serve(node, "shop")
    assert (await node.reloader.reload("test")).changed == ("services.modules", "tokens")


async def test_two_operations_of_one_name_are_a_mistake_of_the_configuration(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    serve(node, "shop", "rival")
    with pytest.raises(ConfigError, match=r"\[services\] modules: two operations are named 'shop/order'") as caught:
        await node.reloader.reload("test")
    assert caught.value.hint == "rename one of them"
    assert node.swapped == []
    assert "changed nothing" in caplog.text
