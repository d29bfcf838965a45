"""The lean trainer: every byte that waits for the backward pass is there by decision."""
