"""A config to what it would cost on a slice that is not here: compiled ahead of time, without a device."""
