"""Operators of one's own, each in one file, and an evolution that uses them."""
