"""Training: state, step, optimizer, checkpoints, log and the loop that orders them."""
