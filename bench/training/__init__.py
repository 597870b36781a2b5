"""Training many cells on one backbone: the trainer, its latents, the slots of a pack, and compiled blocks."""
