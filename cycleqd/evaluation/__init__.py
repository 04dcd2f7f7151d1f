"""How a score is reached: a task's samples, an engine's replies, a benchmark's verdicts."""
