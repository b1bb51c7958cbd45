"""The HTTP gateway: operations as JSON, event streams, WebSockets, OpenAPI and MCP, on the node's own port.

An ASGI application that reaches operations through the same dispatch as every other door and adds only framing.
"""
