"""How each stage runs under Prefect: one task a stage."""
