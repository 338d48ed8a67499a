"""What people look at: MLflow runs, the front as table, plot and page, and pick."""
