"""Readers: one file a format, each importing its library on first use."""
