"""What is computed on task vectors: merging, mutation and aggregation of checkpoints, streamed."""
