"""Running on one machine: the runner, the warm process that tasks are forked from, S3 and MLflow servers."""
