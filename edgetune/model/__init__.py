"""Plain vision transformers: what they are, their weights in and out, and adapters on them."""
