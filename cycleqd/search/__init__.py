"""What is decided: selection, crossover weights, archives, grids. Pure functions and frozen records."""
