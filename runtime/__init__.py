"""What every command needs and a run leaves behind: errors, flags, run directory, checkpoints."""
