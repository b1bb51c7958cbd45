"""Operations as MCP tools: what an agent may call is what it is shown, in both revisions of the protocol.

Start with :mod:`alknet.gateway.mcp.app` (over HTTP) or :mod:`alknet.gateway.mcp.bridge` (over stdin and stdout). Both
give a :class:`~alknet.gateway.mcp.backend.Backend` to the same tools, `calling.py`, behind the official SDK.
"""
