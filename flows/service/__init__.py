"""The service of `flowers up`: servers, worker, and the set-up of the Prefect server."""
