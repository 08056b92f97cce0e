"""When things run: the flows that Prefect starts."""
