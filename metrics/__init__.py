"""The science of measurement: features once, then pure functions of features."""
