"""From plan to run: the training engine, the loop around it, and what it leaves behind."""
