"""What is searched and how: spaces, Pareto tools, evolution, the policy that decides."""
