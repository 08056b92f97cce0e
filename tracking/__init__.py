"""MLflow: runs, registered models, comparison. The only importer of mlflow."""
