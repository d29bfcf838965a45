"""The artifacts that flow between the rooms: profile, plan, run, result. Typed records, JSON on disk.

Every quantity carries its unit in its name, unknown is `None` and never 0, and what was not measured says so. Records
are frozen: an artifact is read and answered with another artifact, never edited in place. Readers ignore fields they do
not know, so that a newer edgetune's files stay readable.
"""

from edgetune.schema.base import Artifact as Artifact
from edgetune.schema.base import Device as Device
from edgetune.schema.base import Engine as Engine
from edgetune.schema.base import Record as Record
from edgetune.schema.base import load as load
from edgetune.schema.base import now as now
from edgetune.schema.base import save as save
from edgetune.schema.base import to_json as to_json
from edgetune.schema.mistakes import Confusion as Confusion
from edgetune.schema.mistakes import Mistakes as Mistakes
from edgetune.schema.mistakes import WrongImage as WrongImage
from edgetune.schema.plan import AlastPlan as AlastPlan
from edgetune.schema.plan import Alternative as Alternative
from edgetune.schema.plan import BlockPlan as BlockPlan
from edgetune.schema.plan import Calibrated as Calibrated
from edgetune.schema.plan import Caps as Caps
from edgetune.schema.plan import DataFacts as DataFacts
from edgetune.schema.plan import FeatureCachePlan as FeatureCachePlan
from edgetune.schema.plan import LoraPlan as LoraPlan
from edgetune.schema.plan import MemoryBill as MemoryBill
from edgetune.schema.plan import NearestFeasible as NearestFeasible
from edgetune.schema.plan import Plan as Plan
from edgetune.schema.plan import Predicted as Predicted
from edgetune.schema.plan import Recipe as Recipe
from edgetune.schema.plan import StepPart as StepPart
from edgetune.schema.profile import BlockCost as BlockCost
from edgetune.schema.profile import Board as Board
from edgetune.schema.profile import Compute as Compute
from edgetune.schema.profile import Memory as Memory
from edgetune.schema.profile import Modes as Modes
from edgetune.schema.profile import Power as Power
from edgetune.schema.profile import Profile as Profile
from edgetune.schema.profile import TensorCost as TensorCost
from edgetune.schema.result import Accuracy as Accuracy
from edgetune.schema.result import EnergyResult as EnergyResult
from edgetune.schema.result import MemoryResult as MemoryResult
from edgetune.schema.result import Result as Result
from edgetune.schema.result import StoppedBy as StoppedBy
from edgetune.schema.result import TimeResult as TimeResult
from edgetune.schema.result import Work as Work
from edgetune.schema.selftest import Check as Check
from edgetune.schema.selftest import FitTry as FitTry
from edgetune.schema.selftest import Selftest as Selftest
from edgetune.schema.selftest import SensorSample as SensorSample
from edgetune.schema.use import Answer as Answer
from edgetune.schema.use import Evaluation as Evaluation
from edgetune.schema.use import ExportReport as ExportReport
from edgetune.schema.use import OrtOptimizer as OrtOptimizer
from edgetune.schema.use import OrtTraining as OrtTraining
from edgetune.schema.use import Prediction as Prediction
from edgetune.schema.use import Predictions as Predictions
