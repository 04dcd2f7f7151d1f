"""A child's checkpoint: its parents' task vectors merged, and mutated too where the two are one task."""
