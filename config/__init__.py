"""The node's configuration: one frozen value, read whole, replaced whole.

Promise: a configuration is either valid in full or refused with errors that name file, line and key; nothing
of a refused one takes effect. May import leaf modules only.

Start with :mod:`alknet.config.model` (what can be set), then :mod:`alknet.config.load` (files to value),
:mod:`alknet.config.policy` (value to access policy), :mod:`alknet.config.diff` and
:mod:`alknet.config.watch` (change while running), :mod:`alknet.config.home` (the directory).
"""
