"""What is kept in S3: objects, checkpoints, records, and where each of them is."""
