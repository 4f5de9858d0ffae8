"""Stands before the real package on the path: tests see `tiny`, whatever is installed."""
