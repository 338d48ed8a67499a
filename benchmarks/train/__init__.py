"""How fast a training job starts and steps, against the bare loop and timm's parts."""
