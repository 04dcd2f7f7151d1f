"""An analytic problem over task vectors: algorithms and operators compared at equal evaluations, in seconds a run."""
