"""Scores of models on tasks, with one engine a process."""
