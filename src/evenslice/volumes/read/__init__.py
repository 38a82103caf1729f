"""Readers: one file per format, each importing its library on first use."""
