"""The table of stages, in the order in which they run. A new one is a file and a line here."""

from shoal.run.stage import Stage
from shoal.run.stages.choose import CHOOSE
from shoal.run.stages.evaluate import EVALUATE
from shoal.run.stages.fit import FIT
from shoal.run.stages.heal import HEAL
from shoal.run.stages.polish import POLISH
from shoal.run.stages.predict import PREDICT
from shoal.run.stages.prune import PRUNE
from shoal.run.stages.scan import SCAN
from shoal.run.stages.write import WRITE
from shoal.words.entries import Entries, by_name

TO_A_STUDENT = (CHOOSE, PREDICT, FIT, POLISH, PRUNE)
"""From a scan to a plan with its values; a curve measures those students without writing their checkpoints."""

STAGES: Entries[Stage] = by_name(
    "stage",
    SCAN,
    *TO_A_STUDENT,
    WRITE,
    HEAL,
    EVALUATE,
)
