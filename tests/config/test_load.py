"""Each mistake in a configuration is refused with file, line, key, what was found and what is allowed."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.config import load as load_module
from alknet.config.home import Home
from alknet.config.load import load, revision
from alknet.config.model import Settings
from alknet.errors import ConfigError
from alknet.keys import PublicKey, generate_private_key

KEYS = [generate_private_key(f"key {number}")[1] for number in range(3)]


class Files:
    """A home made of texts."""

    def __init__(self, path: Path) -> None:
        path.chmod(0o700)
        self.home = Home(path)
        self.home.peers.mkdir(mode=0o700)
        self.main("")

    def main(self, text: str | bytes) -> "Files":
        return self.write(self.home.config, text)

    def peer(self, name: str, text: str | bytes = "") -> "Files":
        return self.write(self.home.peer(name), text)

    def write(self, path: Path, text: str | bytes) -> "Files":
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(0o600)
        return self

    def load(self) -> Settings:
        return load(self.home)

    def problems(self) -> list[str]:
        """What is wrong, with the home's path taken off."""
        with pytest.raises(ConfigError) as caught:
            self.load()
        return str(caught.value).replace(f"{self.home.path}/", "").splitlines()


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def keys(*which: PublicKey) -> str:
    return f"keys = {[str(key) for key in which]}\n"


# --- what is right --------------------------------------------------------------------------------------------


def test_an_empty_file_is_the_defaults(files: Files) -> None:
    assert files.load() == Settings()


def test_peers_come_from_the_main_file_and_then_from_their_own_by_name(files: Files) -> None:
    files.main('[[peers]]\nid = "inline"\n').peer("zoe").peer("alice", 'id = "alice"\nscopes = ["ssh:*"]\n')
    assert [peer.id for peer in files.load().peers] == ["inline", "alice", "zoe"]
    assert files.load().peers[1].scopes == ("ssh:*",)


def test_other_files_and_a_missing_peers_directory_are_no_peers(files: Files) -> None:
    files.write(files.home.peers / "note.txt", "x")
    assert files.load().peers == ()
    (files.home.peers / "note.txt").unlink()
    files.home.peers.rmdir()
    assert files.load().peers == ()


def test_a_directory_without_a_configuration_is_no_home(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no node here \(no alknet\.toml\)") as caught:
        load(Home(tmp_path / "none"))
    assert "alknet up" in caught.value.hint


# --- single values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[ssh]\nexce = true\n", r"alknet\.toml:2: ssh\.exce: is not a known key; did you mean 'exec'\?"),
        ("[shh]\n", r"alknet\.toml:1: shh: is not a known key; did you mean 'ssh'\?"),
        ("\nshh.exec = 1\n", r"alknet\.toml:2: shh: is not a known key; did you mean 'ssh'\?"),
        ("[[rules]]\n", r"alknet\.toml:1: rules: is not a known key; did you mean 'roles'\?"),
        ("[audit]\nxyzzy = 1\n", r"alknet\.toml:2: audit\.xyzzy: is not a known key; known here: required, targets"),
        ("[roles.dev]\nscope = []\n", r"alknet\.toml:2: roles\.dev\.scope: .* did you mean 'scopes'\?"),
        (
            '[[peers]]\nid = "a"\n[peers.ssh]\nusr = "x"\n',
            r"alknet\.toml:4: peers\[0\]\.ssh\.usr: .* did you mean 'user'\?",
        ),
        ('[ssh]\n# c\nexec = "maybe"\n', r"alknet\.toml:3: ssh\.exec: found 'maybe': .*boolean.*"),
        ("[limits]\nconnections = 0\n", r"alknet\.toml:2: limits\.connections: found 0: .*greater than or equal to 1"),
        ("[limits]\nconnections = [1]\n", r"alknet\.toml:2: limits\.connections: found \[1\]: .*integer.*"),
        ("[node]\nname = 7\n", r"alknet\.toml:2: node\.name: found 7: .*string.*"),
        ("node = 1\n", r"alknet\.toml:1: node: found 1: .*"),
        ("[[node]]\n", r"alknet\.toml:1: node: found \[\{\}\]: .*"),
        ('[node]\ndrain_timeout = "soon"\n', r"alknet\.toml:2: node\.drain_timeout: found 'soon': .*\"15m\".*"),
        ('[limits]\nlogin_grace = "2h"\n', r"alknet\.toml:2: limits\.login_grace: found '2h': .*3600"),
        ('[node]\nlisten = ["host:1"]\n', r"alknet\.toml:2: node\.listen\[0\]: found 'host:1': 'host' must be an IP.*"),
        (
            '[node]\nlisten = [\n    "127.0.0.1:1",\n    # c\n    "nonsense",\n]\n',
            r"alknet\.toml:5: node\.listen\[1\]: found 'nonsense': 'nonsense' must be host:port.*",
        ),
        ("[node]\nlisten = []\n", r"alknet\.toml:2: node\.listen: found \[\]: .*at least 1.*"),
        ("[node]\nlisten = [7]\n", r"alknet\.toml:2: node\.listen\[0\]: found 7: must be an address such as.*"),
        (
            '[roles.dev]\nscopes = ["ssh:*", "ssh exec"]\n',
            r"alknet\.toml:2: roles\.dev\.scopes\[1\]: found 'ssh exec': must be a scope such as \"ssh:exec\".*",
        ),
        (
            '[[forwarding.rules]]\naction = "allow"\ndirection = "local"\ntarget = "db"\n',
            r"alknet\.toml:4: forwarding\.rules\[0\]\.target: found 'db': must say its ports too.*",
        ),
        (
            '[[peers]]\nid = "a"\n[[peers.forward]]\naction = "allow"\ndirection = "unix"\ntarget = "db:80"\n',
            r"alknet\.toml:3: peers\[0\]\.forward\[0\]: a rule for unix sockets has an absolute path as its target",
        ),
        ("[[peers]]\nenabled = true\n", r"alknet\.toml:1: peers\[0\]\.id: is missing"),
        (
            '[call]\nmax_frame = "1 MiB"\n',
            r"alknet\.toml:2: call\.max_frame: found '1 MiB': .*integer.*",
        ),
        ("[call]\nmax_frame = 1000\n", r"alknet\.toml:2: call\.max_frame: found 1000: .*65536"),
        ("[call]\ndefault_timeout = 0\n", r"alknet\.toml:2: call\.default_timeout: found 0: .*greater than 0"),
        ("[calls]\n", r"alknet\.toml:1: calls: is not a known key; did you mean 'call'\?"),
        ('[services]\nmodule = ["a"]\n', r"alknet\.toml:2: services\.module: .* did you mean 'modules'\?"),
        (
            '[services]\nmodules = [\n  "a.b",\n  "a/c.py",\n]\n',
            r"alknet\.toml:4: services\.modules\[1\]: found 'a/c\.py': must be the dotted name of a Python module.*",
        ),
        (
            '[services]\nmodules = ["a", "a"]\n',
            r"alknet\.toml:2: services\.modules: found \['a', 'a'\]: 'a' stands in it twice",
        ),
        ('[[peers]]\nid = "Not This"\n', r"alknet\.toml:2: peers\[0\]\.id: found 'Not This': must be 1 to 63 of.*"),
    ],
)
def test_a_mistake_in_the_main_file_is_named_with_its_place(files: Files, text: str, problem: str) -> None:
    (found,) = files.main(text).problems()
    assert re.fullmatch(problem, found), found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("key = []\n", r"peers\.d/a\.toml:1: key: is not a known key; did you mean 'keys'\?"),
        ('scopes = [\n "ssh:*",\n\n "*x",\n]\n', r"peers\.d/a\.toml:4: scopes\[1\]: found '\*x': must be a scope.*"),
        (
            f'keys = [\n    "{KEYS[0]}",\n    "ssh-ed25519 AAAA*",  # damaged\n]\n',
            r"peers\.d/a\.toml:3: keys\[1\]: found 'ssh-ed25519 AAAA\*': has a damaged base64 part.*",
        ),
        ("keys = [7]\n", r"peers\.d/a\.toml:1: keys\[0\]: found 7: must be an OpenSSH public-key line in quotes"),
        ('node_key = "x"\n', r"peers\.d/a\.toml:1: node_key: found 'x': is not an OpenSSH public-key line.*"),
        (
            '[resources]\nproject = ["read"]\nfile = ["read", "read:"]\n',
            r"peers\.d/a\.toml:3: resources\.file\[1\]: found 'read:': must be what may be done.*",
        ),
        (
            '[resources]\n"a b" = ["read"]\n',
            r"peers\.d/a\.toml:2: resources\.a b: found 'a b': must be 1 to 63 of letters.*",
        ),
        ('[resources]\nproject = "read"\n', r"peers\.d/a\.toml:2: resources\.project: found 'read': must be a list"),
        ('host_key = "x"\n', r"peers\.d/a\.toml:1: host_key: found 'x': is not an OpenSSH public-key line.*"),
        (
            'keys = ["""\n-----BEGIN OPENSSH PRIVATE KEY-----\nx\n"""]\n',
            r"peers\.d/a\.toml:1: keys\[0\]: found .*: is a private key; the line from the \.pub file belongs here",
        ),
        ("expires_at = 2030-01-01T00:00:00\n", r"peers\.d/a\.toml:1: expires_at: found .*: must say its time zone.*"),
        ('expires_at = "tomorrow"\n', r"peers\.d/a\.toml:1: expires_at: found 'tomorrow': .*"),
        ('[ssh]\nshell = "zsh"\n', r"peers\.d/a\.toml:2: ssh\.shell: found 'zsh': must be an absolute path"),
        (
            '[ssh]\nforce_command = "x"\ncommands = []\n',
            r"peers\.d/a\.toml:1: ssh: force_command and commands exclude each other: remove one",
        ),
        (
            '[ssh]\nforce_command = "internal-sftp"\n',
            r"peers\.d/a\.toml:1: ssh: SFTP needs no force_command: grant sftp:read and sftp:write, .*",
        ),
        (
            'id = "b"\n',
            r"peers\.d/a\.toml:1: id: found 'b', but the file's name makes it 'a'",
        ),
        ("id = 7\n", r"peers\.d/a\.toml:1: id: found 7, but the file's name makes it 'a'"),
        (
            'roles = [\n "dev",\n "root",\n]\n',
            r"peers\.d/a\.toml:3: roles: found 'root', which is not in \[roles\] \(dev, ops\)",
        ),
    ],
)
def test_a_mistake_in_a_peers_file_is_named_with_its_place(files: Files, text: str, problem: str) -> None:
    files.main("[roles.ops]\n[roles.dev]\n").peer("a", text)
    (found,) = files.problems()
    assert re.fullmatch(problem, found, re.DOTALL), found


@pytest.mark.parametrize("name", ["Alice", "a b", "-a", "a" * 64, "ä"])
def test_the_name_of_a_peers_file_is_an_id(files: Files, name: str) -> None:
    (found,) = files.peer(name).problems()
    assert found == f"peers.d/{name}.toml: the file's name is the peer's id and must be 1 to 63 of a-z, 0-9 and -"


def test_an_editors_hidden_file_is_no_peer(files: Files) -> None:
    assert files.peer(".#bob", "garbage").load().peers == ()


def test_a_forward_rule_is_for_peers_and_roles_that_there_are(files: Files) -> None:
    """A slip in a rule that denies would let somebody through."""
    rule = '[[forwarding.rules]]\naction = "deny"\ndirection = "local"\ntarget = "*:*"\npeers = [\n'
    files.peer("a").main(f'{rule}  "a",\n  "b",\n  "@staff",\n  "@ops",\n]\n[roles.ops]\n')
    assert files.problems() == [
        "alknet.toml:7: forwarding.rules[0].peers: there is no peer 'b'",
        "alknet.toml:8: forwarding.rules[0].peers: found '@staff', but there is no such role in [roles] (ops)",
    ]
    assert files.peer("b").main(rule + '"a", "b"]\n').load().forwarding.rules[0].peers == ("a", "b")


def test_a_role_where_none_is_defined_says_so(files: Files) -> None:
    (found,) = files.peer("a", 'roles = ["dev"]\n').problems()
    assert found.endswith("which is not in [roles] (none are defined)")


def test_a_long_value_is_shown_in_short(files: Files) -> None:
    (found,) = files.main(f'[node]\nname = "{"x" * 500}"\n').problems()
    assert len(found) < 200
    assert "..." in found


# --- several values together ----------------------------------------------------------------------------------


def test_a_key_of_two_peers_is_refused_and_names_both(files: Files) -> None:
    files.peer("alice", keys(KEYS[0], KEYS[1])).peer("bob", f'keys = [\n"{KEYS[2]}",\n"{KEYS[1]}"]\n')
    (found,) = files.problems()
    assert found == (
        f"peers.d/bob.toml:3: keys: {KEYS[1].fingerprint} belongs to two peers, 'alice' and 'bob';"
        " a key proves one identity"
    )


def test_a_principal_of_two_peers_is_refused_and_names_both(files: Files) -> None:
    files.peer("alice", 'principals = ["ops", "a"]\n').peer("bob", 'principals = [\n"b",\n"ops"]\n')
    (found,) = files.problems()
    assert found == (
        "peers.d/bob.toml:3: principals: 'ops' belongs to two peers, 'alice' and 'bob'; a certificate proves one"
        " identity"
    )


def test_an_authority_stands_in_one_table(files: Files) -> None:
    table = f'[[ssh.user_ca]]\nkey = "{KEYS[0]}"\nprincipals = ["*"]\n'
    assert files.main(table).load().ssh.user_ca[0].principals == ("*",)
    (found,) = files.main(table * 2).problems()
    assert found == (
        f"alknet.toml:5: ssh.user_ca: {KEYS[0].fingerprint} stands in it twice; put all its principals into one table"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[[ssh.user_ca]]\nkey = "{key}"\n', "alknet.toml:1: ssh.user_ca[0].principals: is missing"),
        ('[[ssh.user_ca]]\nkey = "{key}"\nprincipals = []\n', "ssh.user_ca[0].principals: found []: "),
        ('[[ssh.user_ca]]\nkey = "{key}"\nprincipals = ["a b"]\n', "must be one principal, where * and ? are globs"),
        (
            '[[ssh.user_ca]]\nkey = "{key}"\nprincipals = ["*"]\nrevoked_serials = [-1]\n',
            "revoked_serials[0]: found -1",
        ),
        (
            '[ssh]\nrevoked_keys = ["SHA256:short"]\n',
            "ssh.revoked_keys[0]: found 'SHA256:short': must be a fingerprint",
        ),
        ('[ssh]\nhost_cert = "relative"\n', "must be the absolute path of a file"),
    ],
)
def test_what_is_wrong_with_authorities_is_said(files: Files, text: str, problem: str) -> None:
    (found,) = files.main(text.replace("{key}", str(KEYS[0]))).problems()
    assert problem in found


def test_a_revoked_key_may_be_a_line_or_its_fingerprint(files: Files) -> None:
    settings = files.main(f'[ssh]\nrevoked_keys = ["{KEYS[0]}", "{KEYS[1].fingerprint}"]\n').load()
    assert settings.ssh.revoked_keys == (KEYS[0].fingerprint, KEYS[1].fingerprint)


@pytest.mark.parametrize(
    ("alice", "bob", "problem"),
    [
        ('node_key = "{key}"\n', 'scopes = []\nnode_key = "{key}"\n', "peers.d/bob.toml:2: node_key: "),
        ('node_key = "{key}"\n', 'keys = [\n"{key}"]\n', "peers.d/bob.toml:2: keys: "),
        ('keys = ["{key}"]\n', 'node_key = "{key}"\n', "peers.d/bob.toml:1: node_key: "),
    ],
    ids=["twice-node-key", "node-key-and-key", "key-and-node-key"],
)
def test_a_node_key_of_two_peers_is_refused_and_names_both(files: Files, alice: str, bob: str, problem: str) -> None:
    files.peer("alice", alice.format(key=KEYS[0])).peer("bob", bob.format(key=KEYS[0]))
    (found,) = files.problems()
    assert found == (
        f"{problem}{KEYS[0].fingerprint} belongs to two peers, 'alice' and 'bob'; a key proves one identity"
    )


def test_a_peer_may_log_in_with_its_node_key(files: Files) -> None:
    files.peer("alice", f'{keys(KEYS[0])}node_key = "{KEYS[0]}"\n')
    (alice,) = files.load().peers
    assert alice.node_key == alice.keys[0]


def test_a_key_is_the_same_whatever_its_comment(files: Files) -> None:
    bare = str(KEYS[0]).rsplit(" ", 2)[0]
    files.main(f'[[peers]]\nid = "alice"\nkeys = ["{bare}"]\n').peer("bob", keys(KEYS[0]))
    assert "'alice' and 'bob'" in files.problems()[0]


def test_a_peer_may_name_its_own_key_twice(files: Files) -> None:
    files.peer("alice", keys(KEYS[0], KEYS[0]))
    assert len(files.load().peers[0].keys) == 2


def test_an_id_that_stands_twice_is_refused_with_both_places(files: Files) -> None:
    files.main('[[peers]]\nid = "a"\n[[peers]]\nid = "b"\n[[peers]]\nid = "a"\n').peer("b")
    first, second = files.problems()
    assert re.fullmatch(r"alknet\.toml:6: peer 'a' stands a second time; the first is at .*alknet\.toml:2", first)
    assert re.fullmatch(r"peers\.d/b\.toml: peer 'b' stands a second time; the first is at .*:4", second)


def test_all_mistakes_of_all_files_are_reported_together(files: Files) -> None:
    files.main("[ssh]\nexce = 1\nshel = 1\n").peer("a", "key = 1\n").peer("B").peer("c", 'id = "d"\n')
    found = files.problems()
    assert len(found) == 5
    assert [line.split(":")[0] for line in found].count("alknet.toml") == 2


def test_a_long_list_of_mistakes_is_cut(files: Files) -> None:
    found = files.main("[ssh]\n" + "".join(f"x{number} = 1\n" for number in range(30))).problems()
    assert len(found) == load_module.MAX_SHOWN_ERRORS + 1
    assert found[-1] == "(and 10 more)"


# --- files that cannot be read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[node]\nname = \n", r"alknet\.toml:2: is not valid TOML: .*"),
        ("[node]\nname = 'a'\n\nname = 'b'\n", r"alknet\.toml:4: is not valid TOML: .*"),
        ("[node\n", r"alknet\.toml:1: is not valid TOML: .*"),
        ('a = """\n\n', r"alknet\.toml:3: is not valid TOML: .*"),
        (b"[node]\n# caf\xe9\n", r"alknet\.toml:2: is not UTF-8 text"),
        (b"\xff\xfe", r"alknet\.toml:1: is not UTF-8 text"),
        (f"a = {'9' * 5000}\n", r"alknet\.toml: is not valid TOML: .*"),
        (f"a = {'[' * 5000}\n", r"alknet\.toml: is nested too deeply"),
        ("a = 2024-13-45\n", r"alknet\.toml:1: is not valid TOML: .*"),
    ],
)
def test_what_is_no_toml_is_named_with_its_line(files: Files, text: str | bytes, problem: str) -> None:
    (found,) = files.main(text).problems()
    assert re.fullmatch(problem, found), found


def test_a_file_that_is_too_large_is_refused(files: Files) -> None:
    files.main("#" * load_module.MAX_FILE_BYTES)
    files.load()
    files.main("#" * (load_module.MAX_FILE_BYTES + 1))
    assert files.problems() == ["alknet.toml: has 1048577 bytes; at most 1048576 are read"]


def test_a_directory_in_the_place_of_a_file_is_refused(files: Files) -> None:
    files.home.peer("a").mkdir(mode=0o700)
    assert files.problems() == ["peers.d/a.toml: is not a regular file"]


def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(files: Files) -> None:
    os.mkfifo(files.home.peer("a"), 0o600)
    assert files.problems() == ["peers.d/a.toml: is not a regular file"]


def test_a_device_in_the_place_of_a_file_is_refused(files: Files) -> None:
    files.home.peer("a").symlink_to("/dev/zero")
    assert files.problems() == ["peers.d/a.toml: is not a regular file"]


@pytest.mark.parametrize("text", ["x = \n", "\xff".encode("latin-1"), "[ssh]\nexce = 1\n", "a = " + "9" * 5000])
def test_a_mistake_comes_with_what_to_do(files: Files, text: str | bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        files.main(text).load()
    assert caught.value.hint == load_module.HINT


def test_a_dangling_link_is_refused(files: Files) -> None:
    files.home.peer("a").symlink_to("nowhere")
    assert files.problems() == ["peers.d/a.toml: cannot be read: No such file or directory"]


PLACES: list[Callable[[Home], Path]] = [
    lambda home: home.path,
    lambda home: home.config,
    lambda home: home.peers,
    lambda home: home.peer("alice"),
]


@pytest.mark.parametrize("place", PLACES, ids=["home", "config", "peers", "peer"])
@pytest.mark.parametrize("bit", [0o020, 0o002], ids=["group", "others"])
def test_what_others_can_write_is_refused(files: Files, place: Callable[[Home], Path], bit: int) -> None:
    path = place(files.peer("alice").home)
    files.load()
    path.chmod(path.stat().st_mode | bit)
    with pytest.raises(ConfigError, match="so that others can write") as caught:
        files.load()
    assert str(caught.value).startswith(f"{path}: has mode ")
    assert caught.value.hint == f"chmod go-w {path}"


@pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="only root can give a file away")
@pytest.mark.parametrize("place", PLACES, ids=["home", "config", "peers", "peer"])
def test_what_belongs_to_somebody_else_is_refused(files: Files, place: Callable[[Home], Path]) -> None:
    path = place(files.peer("alice").home)
    os.chown(path, 4711, -1)
    with pytest.raises(ConfigError, match="belongs to user 4711"):
        files.load()


HEADERS = ["[node]", "[ssh]", "[[peers]]", "[roles.x]", "[roles]", "[limits]"]
WORDS = ["name", "listen", "keys", "scopes", "exec", "=", "=", "'x'", "7", "[]", "{}", "[1]", "true", "-1", ".", ","]
SCRAPS = st.lists(st.sampled_from(HEADERS + WORDS), max_size=12)


@given(SCRAPS, st.data())
def test_any_text_is_settings_or_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, scraps: list[str], data: st.DataObject
) -> None:
    files = Files(tmp_path_factory.mktemp("home"))
    text = "".join(scrap + data.draw(st.sampled_from([" ", "\n"])) for scrap in scraps)
    try:
        files.main(text).load()
    except ConfigError as exc:
        for line in str(exc).splitlines():
            assert re.match(rf"{re.escape(str(files.home.config))}:\d+: ", line), line


# --- the revision ---------------------------------------------------------------------------------------------


def test_equal_settings_have_equal_revisions_however_they_are_written(files: Files) -> None:
    files.main('[ssh]\nexec = false\n[node]\ndrain_timeout = "2s"\n')
    first = revision(files.load())
    files.main("# c\nnode = { drain_timeout = 2.0 }\nssh.exec = false\n")
    assert revision(files.load()) == first
    assert re.fullmatch("[0-9a-f]{16}", first)


def test_any_change_is_another_revision(files: Files) -> None:
    revisions = {revision(Settings())}
    main = ("[ssh]\nexec = false\n", "[node]\ndrain_timeout = 3\n", "[roles.x]\n", '[services]\nmodules = ["a"]\n')
    for text in main:
        revisions.add(revision(files.main(text).load()))
    for text in ("", "enabled = false\n", 'scopes = ["*"]\n', keys(KEYS[0]), "expires_at = 2030-01-01T00:00:00Z\n"):
        revisions.add(revision(files.peer("a", text).load()))
    for text in (f'node_key = "{KEYS[0]}"\n', '[resources]\np = ["read"]\n', '[resources]\np = ["read:a"]\n'):
        revisions.add(revision(files.peer("a", text).load()))
    assert len(revisions) == 13
