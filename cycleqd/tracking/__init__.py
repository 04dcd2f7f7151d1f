"""What is shown in MLflow: runs, lineage, scores, pictures."""
