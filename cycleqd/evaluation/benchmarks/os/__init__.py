"""AgentBench os-interaction: shells in small machines, judged by their output or by check scripts."""
