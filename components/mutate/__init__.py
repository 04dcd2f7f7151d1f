"""A merged child's task vector mutated, where that is a task of its own."""
