"""Every setting of a door is the one that the configuration has."""

import dataclasses
from typing import Any

import pytest

from alknet import doors
from alknet.config.addresses import ListenAddress
from alknet.config.model import Settings

CHANGED = {
    "limits": {
        "connections": 11,
        "connections_per_address": 12,
        "half_open": 13,
        "failed_logins_per_address": 14,
        "login_grace": "15s",
        "auth_attempts": 16,
        "channels_per_connection": 17,
        "connections_per_peer": 18,
        "forwards_per_connection": 19,
    },
    "ssh": {"env_allow": ["ONLY_THIS"]},
    "call": {"max_frame": 70_000, "max_in_flight": 20},
    "mcp": {"max_tools": 21},
    "gateway": {
        "hosts": ["node.example"],
        "origins": ["https://app.example"],
        "docs": False,
        "plaintext_loopback": False,
        "https_host": "node.example:443",
        "max_body": 2048,
        "header_timeout": "22s",
        "body_timeout": "23s",
    },
}


def made_of(settings: Settings) -> list[Any]:
    listen = [ListenAddress.parse("192.0.2.1:7022")]
    return [
        doors.admission_limits(settings),
        doors.ssh_settings(settings),
        doors.door_limits(settings),
        doors.call_settings(settings),
        doors.gateway_settings(settings, ["cert.example"] if settings.limits.connections == 11 else [], listen),
    ]


@pytest.mark.parametrize("index", range(5))
def test_a_change_of_the_configuration_reaches_each_field(index: int) -> None:
    before, after = (made_of(settings)[index] for settings in (Settings(), Settings.model_validate(CHANGED)))
    same = {
        field.name for field in dataclasses.fields(after) if getattr(before, field.name) == getattr(after, field.name)
    }
    assert same <= {"mcp"}  # looked at once, when the door is made


def test_what_is_listened_on_and_certified_are_names_of_the_node() -> None:
    names = doors.gateway_settings(Settings(), ["cert.example"], [ListenAddress.parse("127.0.0.1:1")]).names
    assert names == {"cert.example", "127.0.0.1", "::1"}
