"""Engines: text in, text out, one protocol. `native` is the own decoder, `endpoint` a server, `scripted` no model."""
