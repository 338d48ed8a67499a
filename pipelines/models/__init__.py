"""Models and weights as people have them: opened by folder, file or name, and made fit."""
