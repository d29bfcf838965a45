"""How many watts flow, from whatever this board has to say it with.

One file a family of sensors: `ina3221.py` (Jetson's rail monitors, both drivers, and Thor's input monitor), `pmic.py`
(Raspberry Pi 5), `rapl.py` (x86), `nvml.py` (discrete GPUs), `battery.py`, `tegrastats.py` (last resort) and
`constant.py` (a user's figure, published models). `find.py` chooses. Paths, units and traps: docs/energy.md.
"""

from edgetune.device.power.base import EnergyCounter as EnergyCounter
from edgetune.device.power.base import PowerSource as PowerSource
from edgetune.device.power.base import Reading as Reading
from edgetune.device.power.find import close_power as close_power
from edgetune.device.power.find import describe_power as describe_power
from edgetune.device.power.find import facts_of as facts_of
from edgetune.device.power.find import find_power as find_power
