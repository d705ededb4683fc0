"""The numbered faults, F1 to F65: what is put in on purpose, and what may come of it. `make faults` injects more."""
