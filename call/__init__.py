"""Operation calls: typed, access-controlled functions, called in both directions over one connection.

What it promises: whichever door a call comes through, the same checks in the same order give the same answer or the
same refusal; a call that nobody wants any more is stopped, with all that it has called; nothing that the other side
sends costs more than a bound with a name.

In reading order: `operations` (what an operation is; `specs`, `declarations`, `signatures`, `schema` and `binary` are
its parts), `registry`, `dispatch` and `prepared` (the way in, for every door), `context` and `composition` (what a
handler sees and may call); then, for the wire, `frames`, `codecs`, `envelopes`, `machine` (the state of a session,
without I/O), `hello`; then what moves bytes: `channel`, `session`, `serving`, `subscription`, and at the ends `handler`
(the door ``alknet/call``; `command` is the one for stock ssh) and `client`, with `trust` in the nodes that it reaches.

What connected peers bring: `overlays` (whose operations are there, without I/O), `from_call` and `remote_specs`
(finding them out, with mistrust), `forwarding` (how a call gets there), `routing` and `breaker` (to which of several),
`exposed` (as operations of this node), and `mesh`, which does all that for a node. Bytes instead of calls:
`channel_states`, `byte_channel`, `byte_channels`, and `channel_door` (where they lead).

Imports `alknet.alpn` and the leaves. A program that only calls needs `client`, and never loads pydantic.
"""
