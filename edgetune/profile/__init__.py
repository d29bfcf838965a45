"""How fast and how hungry is this machine? Assembles the profile; probes run in a child process.

The parent imports neither torch nor numpy, so that reading a board stays small and a wheel that can't run here can't
take the profiler down with it.
"""

from edgetune.profile.assemble import profile_device as profile_device
