"""Models, task data, plug-ins and configuration copied to S3: the beginning of an evolution."""
