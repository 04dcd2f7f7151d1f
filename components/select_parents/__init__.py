"""A generation's plan: parents, weights and seeds of its children. Writing it claims the generation."""
