"""Engines: text in, text out, one protocol. `native` is ojak's own decoder; `scripted` needs no model at all."""
