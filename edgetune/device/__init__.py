"""What is this machine? Board, memory, power, modes and throttling, read through one small seam and without torch.

Import from the modules: `board.identify`, `memory.read_memory`, `modes.read_modes`, `throttle.read_throttle`,
`catalogue.load_catalogue`. Nothing here changes a setting of the machine.
"""
