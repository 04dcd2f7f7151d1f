"""Running on one machine: the runner, the processes that tasks are, S3 and MLflow servers."""
