"""Synthesis: an aligned model in, conversations out."""
