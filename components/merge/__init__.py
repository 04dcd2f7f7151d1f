"""Children's checkpoints: their parents' task vectors merged; a large child is mutated in the same task."""
