"""[gateway] and [mcp]: what the node serves over HTTP."""

from typing import Annotated

from pydantic import Field

from alknet.config.base import Model
from alknet.config.fields import LIVE, RESTART, Count, Duration, HostPattern, Origin, RedirectHost, Switch

__all__ = ["Gateway", "Mcp"]

Hosts = Annotated[tuple[HostPattern, ...], Field(max_length=256)]
Origins = Annotated[tuple[Origin, ...], Field(max_length=256)]


class Gateway(Model):
    """[gateway]: operations as HTTP, with JSON, event streams and WebSockets."""

    enabled: Switch = Field(True, description="Whether the node serves HTTP at all.", json_schema_extra=RESTART)
    hosts: Hosts = Field(
        (),
        description="Names by which clients may reach the node, NAME or NAME:PORT, beside loopback names, the addresses"
        ' that it listens on and the names in its certificate; "*.example.org" is every name with one label more, and'
        ' "*" takes any, which gives up the defence against DNS rebinding.',
        json_schema_extra=LIVE,
    )
    origins: Origins = Field(
        (),
        description="Web origins, such as https://app.example, whose pages may use the node (CORS), beside its own;"
        ' "null" stands for pages without one, "*" for every page but those.',
        json_schema_extra=LIVE,
    )
    docs: Switch = Field(True, description="Whether /docs shows the interactive page.", json_schema_extra=LIVE)
    plaintext_loopback: Switch = Field(
        True,
        description="Whether HTTP without TLS is served to this machine; other machines never get it.",
        json_schema_extra=LIVE,
    )
    https_host: RedirectHost = Field(
        "",
        description="NAME or NAME:PORT that plaintext requests of other machines are redirected to (GET and HEAD"
        " without a credential); empty, and they are refused.",
        json_schema_extra=LIVE,
    )
    max_body: Count = Field(
        1024 * 1024,
        ge=1024,
        le=64 * 1024 * 1024,
        description="Bytes of the largest request body.",
        json_schema_extra=LIVE,
    )
    header_timeout: Duration = Field(
        10.0, gt=0, le=300, description="How long a request's headers may take to arrive.", json_schema_extra=LIVE
    )
    body_timeout: Duration = Field(
        60.0, gt=0, le=3600, description="How long a request's body may take to arrive.", json_schema_extra=LIVE
    )


class Mcp(Model):
    """[mcp]: operations as tools of the Model Context Protocol, at /mcp."""

    enabled: Switch = Field(True, description="Whether /mcp is served.", json_schema_extra=RESTART)
    max_tools: Count = Field(
        100,
        ge=0,
        le=10_000,
        description="A caller who may call more operations than this gets four tools to find and call them, instead of"
        " one tool for each.",
        json_schema_extra=LIVE,
    )
