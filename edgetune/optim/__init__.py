"""Update rules: what all engines agree on, torch's fused kernels, and groups in flat memory with little state."""
