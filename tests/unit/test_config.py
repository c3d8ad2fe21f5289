"""Settings: what loads, what is refused in which words, who may have written the files, and the texts made of them."""

import os
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysendmail import config
from pysendmail.config import Config, ConfigError, document, files, identity, kinds, loader
from pysendmail.config.table import SECTIONS, TABLE
from pysendmail.paths import Paths

ROOT = Path(__file__).resolve().parents[2]
BAD = ROOT / "tests" / "bad_configs"
NODE = "box.example.net"


def write(path: str, text: str, mode: int = 0o644) -> None:
    Path(path).write_text(text, "utf-8")
    os.chmod(path, mode)


def problems(paths: Paths) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.load(paths, NODE)
    return [line.replace(paths.root, "") for line in caught.value.problems]


# ---- what is in force


def test_no_file_at_all_is_a_sound_configuration(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path))
    found = config.read(paths, NODE)
    assert found.warnings == ()
    assert found.config.hostname == found.config.domain == NODE
    assert found.config.local_domains == ("localhost", NODE, "localhost.localdomain", "box")
    assert found.config.local.aliases == (paths.aliases,)
    assert [listener.address for listener in found.config.listeners] == ["127.0.0.1:25", "[::1]:25"]
    assert {listener.profile for listener in found.config.listeners} == {"smtp"}


def test_the_defaults_are_the_published_ones() -> None:
    """docs and other hosts rely on these figures; whoever changes one says so here."""
    limits, queue = Config().limits, Config().queue
    assert (limits.message_size, limits.recipients, limits.hops) == (52_428_800, 1000, 50)
    assert (limits.header_size, limits.sessions, limits.sessions_per_client) == (131_072, 100, 20)
    assert (queue.lifetime, queue.delay_warning, queue.retry_first, queue.retry_max) == (432_000, 14_400, 300, 3600)
    assert not queue.visible_to_all
    assert Config().local.mailbox == "mbox"
    assert Config().relay.tls == "may"


def test_every_default_is_what_its_own_kind_reads() -> None:
    for rows in TABLE.values():
        for row in rows:
            if row.name != "address":  # of a listener: the one setting that must be there
                assert row.kind.read(row.kind.plain(row.default)) == row.default, row.name


def test_files_are_read_in_order_and_the_later_value_counts(paths: Paths) -> None:
    write(paths.settings, '[queue]\nlifetime = 1\nretry_max = 600\n[smtpd]\nlisten = ["127.0.0.1:1"]\n')
    write(f"{paths.conf_dir}/50-b.toml", '[queue]\nlifetime = 3\n[smtpd]\nlisten = ["127.0.0.1:3"]\n')
    write(f"{paths.conf_dir}/10-a.toml", "[queue]\nlifetime = 2\n")
    write(f"{paths.conf_dir}/90-c.toml.dpkg-old", "[queue]\nlifetime = 4\n")
    write(f"{paths.conf_dir}/.hidden.toml", "[queue]\nlifetime = 5\n")
    found = config.read(paths, NODE)
    assert (found.config.queue.lifetime, found.config.queue.retry_max) == (3, 600)
    assert [listener.address for listener in found.config.listeners] == ["127.0.0.1:3"]
    assert found.origins["queue", "lifetime"] == f"{paths.conf_dir}/50-b.toml:2"
    assert found.origins["queue", "retry_max"] == f"{paths.settings}:3"


def test_listeners_of_their_own_come_after_the_usual_ones(paths: Paths) -> None:
    write(paths.settings, '[[listener]]\naddress = "0.0.0.0:587"\nprofile = "submission"\n'
                          '[[listener]]\naddress = "unix:/run/lmtp"\nprofile = "lmtp"\n')
    listeners = config.load(paths, NODE).listeners
    assert [(entry.address, entry.profile) for entry in listeners] == [
        ("127.0.0.1:25", "smtp"), ("[::1]:25", "smtp"), ("0.0.0.0:587", "submission"), ("unix:/run/lmtp", "lmtp")]


# The drop-ins that the conformance suite and the lab write.
@pytest.mark.parametrize(("text", "expected"), [
    ('[smtpd]\nlisten = ["0.0.0.0:25", "[::]:25"]\n\n[relay]\nsmarthost = "192.0.2.1:2525"\ntls = "may"\n\n',
     {"relay.smarthost": ("192.0.2.1:2525",), "smtpd.listen": ("0.0.0.0:25", "[::]:25"), "relay.tls": "may"}),
    ('[relay]\nsmarthost = "mx.example:587"\nusername = "relay"\npassword = "s3cret pass"\ntls = "verify"\n'
     'ca_file = "/tmp/ca.pem"\n', {"relay.password": "s3cret pass", "relay.ca_file": "/tmp/ca.pem"}),
    ('[smtpd]\ntls_cert = "/c/cert.pem"\ntls_key = "/c/key.pem"\n', {"smtpd.tls_key": "/c/key.pem"}),
    ('[limits]\nmessage_size = 200000\n', {"limits.message_size": 200_000}),
    ('[queue]\nlifetime = 3\n', {"queue.lifetime": 3}),
    ('[queue]\ndelay_warning = 2\n', {"queue.delay_warning": 2}),
    ('[local]\nmailbox = "maildir"\n', {"local.mailbox": "maildir"}),
    ('[auth]\nsenders = { alice = "a@Example.org, example.NET", "*" = "example.com" }\n',
     {"auth.senders": (("alice", "a@example.org example.net"), ("*", "example.com"))}),
    ('hostname = "a.lab.test"\nlocal_domains = ["a.lab.test", "localhost.lab.test", "localhost"]\n\n[local]\n'
     'mailbox = "mbox"\n\n[smtpd]\nrelay_from = ["127.0.0.0/8", "::1/128", "10.99.0.0/24", "fd99::/64"]\n[limits]\n',
     {"hostname": "a.lab.test",
      "local_domains": ("localhost", "a.lab.test", "localhost.localdomain", "a", "localhost.lab.test")}),
])
def test_ordinary_drop_ins_load(paths: Paths, text: str, expected: dict[str, Any]) -> None:
    write(f"{paths.conf_dir}/90.toml", text)
    found = config.load(paths, NODE)
    for name, value in expected.items():
        section, _, inner = name.rpartition(".")
        assert getattr(getattr(found, section) if section else found, inner) == value


@pytest.mark.parametrize(("line", "place", "expected"), [
    ('smarthost = ["a.example", "[b.example]:587", "[2001:db8::1]:26"]', "relay.smarthost",
     ("a.example", "[b.example]:587", "[2001:db8::1]:26")),
    ('smarthost = ""', "relay.smarthost", ()),
    ('masquerade = "Example.ORG"', "relay.masquerade", (("*", "example.org"),)),
    ('masquerade = "me@Example.org"', "relay.masquerade", (("*", "me@example.org"),)),
    ('masquerade = ""', "relay.masquerade", ()),
    ('masquerade = { root = "admin@example.org", "*" = "example.org" }', "relay.masquerade",
     (("root", "admin@example.org"), ("*", "example.org"))),
    ('transport = { "Example.org" = "mx", ".example.com" = "[gw]:26", "a@b.example" = "lmtp:unix:/run/l" }',
     "relay.transport", (("example.org", "mx"), (".example.com", "[gw]:26"), ("a@b.example", "lmtp:unix:/run/l"))),
    ('transport = {}', "relay.transport", ()),
    ('domains = ["B.example.", "b.example", "münchen.example"]', "relay.domains", ("b.example", "münchen.example")),
])
def test_what_relay_settings_become(paths: Paths, line: str, place: str, expected: object) -> None:
    write(paths.settings, f"[relay]\n{line}\n")
    section, name = place.split(".")
    assert getattr(getattr(config.load(paths, NODE), section), name) == expected


@pytest.mark.parametrize("mailbox", ["mbox", "maildir", "lmtp:unix:/run/dovecot", "lmtp:127.0.0.1:24", "lmtp:[::1]:24"])
def test_mailboxes(paths: Paths, mailbox: str) -> None:
    write(paths.settings, f'[local]\nmailbox = "{mailbox}"\n')
    assert config.load(paths, NODE).local.mailbox == mailbox


@pytest.mark.parametrize(("text", "expected"), [
    ("mail.example.org", ("mail.example.org", 25)), ("mail.example.org:587", ("mail.example.org", 587)),
    ("192.0.2.1:2525", ("192.0.2.1", 2525)), ("[2001:db8::1]", ("2001:db8::1", 25)), ("[::1]:24", ("::1", 24)),
    ("[mail.example.org]:26", ("mail.example.org", 26)),
])
def test_endpoints(text: str, expected: tuple[str, int]) -> None:
    assert config.split_endpoint(text) == expected


@pytest.mark.parametrize("text", ["", ":25", "a:", "a:b", "a:65536", "a:-1", "a: 1", "a:٣", "::1", "[::1", "[]:25",
                                  "[::1]25", "[::1]:", "a b", "a:1:2", "-a:1", "a..b", "[[::1]]", "a:1\n", "a:000025"])
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError):
        config.split_endpoint(text)


@given(st.text())
def test_an_endpoint_is_read_or_refused_and_nothing_else(text: str) -> None:
    try:
        host, port = config.split_endpoint(text)
    except ValueError:
        return
    assert host
    assert host.isprintable()
    assert 0 <= port <= kinds.MAX_PORT


# ---- what is refused


def cases() -> Iterator[Any]:
    for folder in sorted(BAD.iterdir()):
        yield pytest.param(folder, id=folder.name)


@pytest.mark.parametrize("folder", list(cases()))
def test_a_bad_configuration_is_refused_in_these_words(paths: Paths, folder: Path) -> None:
    write(paths.settings, (folder / "pysendmail.toml").read_text("utf-8"))
    expected = (folder / "expected-error").read_text("utf-8").strip().split("\n")
    assert problems(paths) == expected


def test_every_problem_of_every_file_is_named_at_once(paths: Paths) -> None:
    write(paths.settings, "[queue]\nlifetime = true\nretry_max = 0\n")
    write(f"{paths.conf_dir}/a.toml", "not toml\n")
    write(f"{paths.conf_dir}/b.toml", "[limits]\nhops = 1\n")
    found = problems(paths)
    assert len(found) == 4
    assert found[2].startswith("/etc/pysendmail/conf.d/a.toml:1: ")


@pytest.mark.parametrize(("data", "words"), [
    (b"\xff = 1\n", "is not UTF-8"), (b"a" * (files.MAX_FILE + 1), "is larger than"),
    (b"a = " + b"[" * 100_000, "is nested too deep"),
])
def test_a_file_that_is_no_settings_file(paths: Paths, data: bytes, words: str) -> None:
    Path(paths.settings).write_bytes(data)
    [problem] = problems(paths)
    assert words in problem


def test_a_fifo_or_directory_in_conf_d_neither_hangs_nor_passes(paths: Paths) -> None:
    os.mkfifo(f"{paths.conf_dir}/a.toml")
    os.mkdir(f"{paths.conf_dir}/b.toml")
    assert problems(paths) == ["/etc/pysendmail/conf.d/a.toml: is not a regular file",
                               "/etc/pysendmail/conf.d/b.toml: is not a regular file"]


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646, 0o620])
def test_a_file_that_others_can_write_is_refused(paths: Paths, mode: int) -> None:
    write(paths.settings, "[queue]\n", mode)
    assert problems(paths) == [f"/etc/pysendmail/pysendmail.toml: can be changed by others (mode {mode:04o})"]


@pytest.mark.parametrize("name", ["etc", "conf_dir"])
def test_a_directory_that_others_can_write_is_refused(paths: Paths, name: str) -> None:
    os.chmod(getattr(paths, name), 0o777)
    assert "can be changed by others (mode 0777)" in problems(paths)[0]


@pytest.mark.root
def test_a_file_of_another_user_is_refused(paths: Paths) -> None:
    write(paths.settings, "[queue]\n")
    os.chown(paths.settings, 65534, 0)
    assert problems(paths) == ["/etc/pysendmail/pysendmail.toml: belongs to uid 65534, who could change it"]


def test_a_password_in_a_file_that_others_can_read_is_named_but_works(paths: Paths) -> None:
    write(paths.settings, '[relay]\nusername = "u"\npassword = "hunter2"\n', 0o644)
    found = config.read(paths, NODE)
    assert found.config.relay.password == "hunter2"
    [warning] = found.warnings
    assert warning.endswith("pysendmail.toml:3: [relay] password: everybody can read this file; chmod it to 0600")
    os.chmod(paths.settings, 0o600)
    assert config.read(paths, NODE).warnings == ()


@pytest.mark.parametrize("value", ["7", '["hunter2"]', '"hunter2\\n"'])
def test_no_message_repeats_a_password(paths: Paths, value: str) -> None:
    write(paths.settings, f'[relay]\nusername = "u"\npassword = {value}\n')
    [problem] = problems(paths)
    assert "[relay] password: " in problem
    assert "hunter2" not in problem
    assert "7" not in problem


def test_a_file_that_we_may_not_read_stops_a_daemon_but_not_somebody_who_looks(
    paths: Paths, monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(paths.settings, "[queue]\nlifetime = 7\n")
    write(f"{paths.conf_dir}/secret.toml", "[queue]\nlifetime = 8\n", 0o600)
    really = files.read_trusted

    def read_trusted(path: str) -> Any:
        if path.endswith("secret.toml"):
            raise PermissionError(13, "Permission denied", path)
        return really(path)

    monkeypatch.setattr(files, "read_trusted", read_trusted)
    assert problems(paths) == ["/etc/pysendmail/conf.d/secret.toml: Permission denied"]
    found = config.read(paths, NODE, partial=True)
    assert found.config.queue.lifetime == 7
    assert found.warnings == (f"{paths.conf_dir}/secret.toml: Permission denied",)


@given(st.dictionaries(st.sampled_from(["hostname", "local", "relay", "queue", "listener", "x"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(), lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["mailbox", "smarthost", "transport", "lifetime", "address", "y"]), inner,
                      max_size=3), max_leaves=8)))
def test_any_values_are_accepted_or_refused_in_words(values: dict[str, Any]) -> None:
    """Whatever a file says, load() ends with a Config or with lines for people."""
    found = loader.Collection({}, {}, [], [])
    loader.collect("f", values, {}, "", found)
    assert all(line.isprintable() for line in found.problems)
    assert isinstance(loader.build(found), Config)


# ---- secrets and children


def test_a_password_file_is_read_when_it_is_closed(paths: Paths) -> None:
    secret = f"{paths.etc}/secret"
    write(paths.settings, f'[relay]\nusername = "u"\npassword_file = "{secret}"\n')
    write(secret, "pass wörd\nsecond line\n", 0o600)
    loaded = config.load(paths, NODE)
    assert loaded.relay.password == ""
    assert config.with_secrets(loaded).relay.password == "pass wörd"
    assert config.without_secrets(config.with_secrets(loaded)).relay.password == ""
    assert config.without_secrets(config.with_secrets(loaded)) == loaded


@pytest.mark.parametrize(("text", "mode", "words"), [
    ("x\n", 0o644, "can be read by everybody (mode 0644)"), ("x\n", 0o622, "can be changed by others (mode 0622)"),
    ("", 0o600, "has an empty first line"), ("a\x07b\n", 0o600, "contains a control character"),
    (None, 0o600, "No such file or directory"),
])
def test_a_password_file_that_cannot_be_used(paths: Paths, text: str | None, mode: int, words: str) -> None:
    secret = f"{paths.etc}/secret"
    if text is not None:
        write(secret, text, mode)
    settings = Config(relay=replace(Config().relay, username="u", password_file=secret))
    with pytest.raises(ConfigError) as caught:
        config.with_secrets(settings)
    assert caught.value.problems == [f"{secret}: [relay] password_file: {words}"]


def test_without_a_password_file_there_is_nothing_to_read() -> None:
    assert config.with_secrets(Config()) == Config()


FULL = """
hostname = "mail.example.org"
[local]
command = "/usr/bin/procmail -a \\"$EXTENSION\\""
[relay]
smarthost = ["a.example:587", "b.example"]
transport = { "example.com" = "mx" }
masquerade = { root = "x@example.org" }
[[listener]]
address = "0.0.0.0:587"
profile = "submission"
[limits]
hops = 99
"""


def test_a_configuration_survives_the_way_to_a_child(paths: Paths) -> None:
    import json
    write(paths.settings, FULL)
    found = config.load(paths, NODE)
    assert config.from_plain(json.loads(json.dumps(config.to_plain(found)))) == found
    assert config.from_plain(config.to_plain(Config())) == Config()


@pytest.mark.parametrize("damage", [
    lambda plain: [], lambda plain: {}, lambda plain: {**plain, "x": 1}, lambda plain: {**plain, "local": None},
    lambda plain: {**plain, "queue": {}}, lambda plain: {**plain, "listener": [{"address": "x"}]},
    lambda plain: {**plain, "hostname": "a\nb"}, lambda plain: {**plain, "relay": {**plain["relay"], "tls": "no"}},
])
def test_a_child_believes_nothing_that_is_no_configuration(damage: Callable[[dict[str, Any]], Any]) -> None:
    with pytest.raises(ConfigError):
        config.from_plain(damage(config.to_plain(Config())))


def test_a_configuration_cannot_be_changed() -> None:
    assert hash(Config()) == hash(Config())
    for part in fields(Config):
        with pytest.raises(AttributeError):
            setattr(Config(), part.name, None)


# ---- who we are

HOSTS = """
127.0.0.1 localhost localhost.localdomain # box
::1 ip6-localhost
127.0.1.1\tbox.example.net box
192.0.2.7 canonical.example.com alias
192.0.2.8 short alone
192.0.2.9 inner inner.example.com
127.0.0.1 localhost.localdomain wrong
"""


@pytest.mark.parametrize(("node", "mailname", "expected"), [
    ("Host.Example.ORG", "mail.example.org\n", ("host.example.org", "mail.example.org")),
    ("box", "mail.example.org", ("box.example.net", "mail.example.org")),
    ("alias", "", ("canonical.example.com", "")),
    ("inner", "", ("inner.example.com", "")),
    ("alone", "", ("alone", "")),
    ("alone", "alone.example.org\n", ("alone.example.org", "alone.example.org")),
    ("alone", "example.org\n", ("alone", "example.org")),
    ("wrong", "", ("wrong", "")),
    ("unknown", "", ("unknown", "")),
    ("(none)", "", ("localhost", "")),
    ("", "x.example", ("localhost", "x.example")),
    ("bad\nname", "", ("localhost", "")),
    ("box", "  Mail.Example.org. \nsecond\n", ("box.example.net", "mail.example.org")),
    ("box", "two words\n", ("box.example.net", "")),
    ("box", "evil\x1b[0m\n", ("box.example.net", "")),
])
def test_the_name_of_this_host(tmp_path: Path, node: str, mailname: str, expected: tuple[str, str]) -> None:
    paths = Paths(str(tmp_path))
    (tmp_path / "etc").mkdir()
    (tmp_path / "hosts").write_text(HOSTS)
    if mailname:
        Path(paths.mailname).write_text(mailname)
    found = identity.find(paths, node, str(tmp_path / "hosts"))
    assert (found.hostname, found.mailname) == expected
    assert bool(found.problem) == (bool(mailname) and not found.mailname)


def test_without_a_hosts_file_the_kernel_is_believed(tmp_path: Path) -> None:
    assert identity.find(Paths(str(tmp_path)), "box", str(tmp_path / "none")) == identity.Identity("box", "")


def test_settings_come_before_the_system(paths: Paths) -> None:
    write(paths.settings, 'hostname = "Smtp.Example.Org."\n')
    found = config.load(paths, NODE)
    assert (found.hostname, found.domain) == ("smtp.example.org", "host.example")
    assert found.local_domains == ("localhost", "smtp.example.org", "localhost.localdomain", "smtp", "host.example")
    write(paths.settings, 'domain = "example.com"\nlocal_domains = ["one.example"]\n')
    found = config.load(paths, NODE)
    assert (found.hostname, found.domain) == (NODE, "example.com")
    assert found.local_domains == ("localhost", NODE, "localhost.localdomain", "box", "one.example")


def test_a_name_that_others_may_refuse_is_named(paths: Paths) -> None:
    Path(paths.mailname).write_text("not a domain\n")
    found = config.read(paths, "lonely-box-9")
    assert found.warnings == (f"{paths.mailname}: not a domain, so it is not used",
                              "hostname: 'lonely-box-9' has no domain; other hosts may refuse mail from it")


# ---- texts


def test_what_is_shown_is_a_settings_file_that_does_the_same(paths: Paths, tmp_path: Path) -> None:
    write(paths.settings, FULL)
    found = config.read(paths, NODE)
    other = Paths(str(tmp_path / "other"))
    os.makedirs(other.conf_dir)
    for with_origin in (False, True):
        write(other.settings, "\n".join(document.show(found, with_origin=with_origin)))
        assert config.load(other, NODE) == found.config


def test_origins_are_shown_beside_the_values(paths: Paths) -> None:
    write(paths.settings, "[queue]\nlifetime = 7\n")
    lines = list(document.show(config.read(paths, NODE), with_origin=True))
    assert f"lifetime = 7  # {paths.settings}:2" in lines
    assert f'hostname = "{NODE}"  # system' in lines
    assert "retry_first = 300  # default" in lines


def test_passwords_are_not_shown(paths: Paths) -> None:
    write(paths.settings, '[relay]\nusername = "u"\npassword = "hunter2"\n', 0o600)
    found = config.read(paths, NODE)
    shown = "\n".join(document.show(found, with_origin=True)) + str(document.as_json(found, with_origin=True))
    assert 'password = "(set)"' in shown
    assert "hunter2" not in shown


def test_json_has_the_shape_of_a_settings_file(paths: Paths) -> None:
    write(paths.settings, FULL)
    found = document.as_json(config.read(paths, NODE), with_origin=False)
    assert found["relay"]["masquerade"] == {"root": "x@example.org"}
    assert found["listener"] == [{"address": "0.0.0.0:587", "profile": "submission", "proxy": False}]
    with_origin = document.as_json(config.read(paths, NODE), with_origin=True)
    assert with_origin["limits"]["hops"] == {"value": 99, "origin": f"{paths.settings}:13"}
    assert with_origin["listener"][0]["profile"]["origin"] == f"{paths.settings}:9"


def test_the_sample_file_is_the_table() -> None:
    path = ROOT / "etc" / "pysendmail" / "pysendmail.toml"
    assert path.read_text("utf-8") == document.sample(), "python3 -m pysendmail.config.document sample > " + str(path)


def test_the_sample_file_sets_nothing_and_says_the_defaults(paths: Paths) -> None:
    text = document.sample()
    assert tomllib.loads(text) == {}
    written = "\n".join(line[1:] for line in text.split("\n") if line.startswith("#") and not line.startswith("# "))
    write(paths.settings, written)
    defaults = replace(config.load(paths, NODE))
    os.unlink(paths.settings)
    assert defaults == config.load(paths, NODE)
    assert len(tomllib.loads(written)["limits"]) == 1, "the sample is for what most hosts could want"


def test_the_manual_lists_the_table() -> None:
    path = ROOT / "man" / "pysendmail.toml.5"
    assert document.manual() in path.read_text("utf-8"), "see python3 -m pysendmail.config.document manual"
    for section in SECTIONS:
        assert f".Ss Table {section}\n" in document.manual()
