"""Evolutions to run and to learn from: the demo, a real small model, the paper's setting."""
