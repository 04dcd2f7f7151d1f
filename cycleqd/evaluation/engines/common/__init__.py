"""What engines share: reading models and adapters, and what runs inside vLLM's worker. No engine is found here."""
