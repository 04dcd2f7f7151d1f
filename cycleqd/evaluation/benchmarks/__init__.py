"""The built-in tasks: a folder a benchmark, each with its judge."""
