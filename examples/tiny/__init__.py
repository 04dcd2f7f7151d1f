"""The demo: three tiny experts that are trained from scratch, and small benchmarks in the formats of the real ones."""
