"""What is searched and how: spaces, Pareto tools, evolution, Ray Tune scheduler."""
