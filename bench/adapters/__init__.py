"""What a method trains on a frozen backbone: low-rank adapters, image tokens, full fine-tuning; image encoders."""
