"""Drawing images: the sampler, and the inversion of real images."""
