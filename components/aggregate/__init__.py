"""The final model: the archives' best elites merged, the naive merge, and the choice of the final one."""
