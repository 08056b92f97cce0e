"""What MLflow remembers: runs, and registered models. The only importer of mlflow."""
