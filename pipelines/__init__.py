"""The DAGs: seeding, a generation, finalising; and where their tasks are placed."""
