"""`make up`: the servers, the worker, and their set-up."""
