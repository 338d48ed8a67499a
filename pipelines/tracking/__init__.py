"""What is found, in MLflow: runs, the front's files, the model registry, and its server."""
