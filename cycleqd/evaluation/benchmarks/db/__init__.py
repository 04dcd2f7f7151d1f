"""AgentBench DBBench: SQL run and judged in MariaDB."""
