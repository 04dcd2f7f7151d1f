"""SmolLM2-135M-Instruct and perturbed experts of it, on the three real benchmarks."""
