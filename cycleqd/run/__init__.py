"""Who runs the pipelines: steps, drivers and runners, and what is checked before and read after a run."""
