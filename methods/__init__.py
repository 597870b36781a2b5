"""Customization methods: one file per paper, only what the paper would say."""
