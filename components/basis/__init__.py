"""The shared basis of the experts' low-rank task vectors, and each expert's core in it: once, at seeding."""
