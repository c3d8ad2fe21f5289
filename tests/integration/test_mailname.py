"""A mail name that changes counts at once, for whoever edits /etc/mailname and expects nothing more to do."""

from collections.abc import Callable
from pathlib import Path

from tests.tools.host import SETTINGS, Host


def test_mail_after_a_change_of_the_mail_name_has_the_new_one(make_host: Callable[..., Host]) -> None:
    host = make_host()
    Path(host.paths.settings).write_text(SETTINGS.replace('\ndomain = "host.example"\n', "\n"))
    host.start()
    host.outcome(host.send("bob"), "bob")
    Path(host.paths.mailname).write_text("renamed.example\n")
    host.outcome(host.send("bob"), "bob")
    first, second = host.messages("bob")
    assert "alice@host.example" in first
    assert "alice@renamed.example" in second
