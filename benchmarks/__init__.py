"""Programs that measure speed and compare methods; they print ratios within one run."""
