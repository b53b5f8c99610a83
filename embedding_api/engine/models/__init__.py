"""What a model's folder says of itself, before anything is loaded. Nothing here imports torch or asks the hub."""
