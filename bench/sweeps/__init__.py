"""Many cells at once: plans, packs, workers, Slurm, status, and the launchers of Hydra."""
