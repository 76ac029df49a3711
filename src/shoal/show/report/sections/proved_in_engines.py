"""What engines made of files of this student."""

from shoal.show.engine_table import engine_table
from shoal.show.report.run_data import RunData, Section


def engines(data: RunData) -> Section | None:
    if not data.proved:
        return None
    return Section("engines", "Proved in engines", "*.verification.json", (engine_table(data.proved),))
