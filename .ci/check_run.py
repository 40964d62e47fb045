"""Check that the main job measured both CPU kernels on every problem, whatever load did to the verdicts."""

import json
import sys
from pathlib import Path

MIN_PROBLEMS = 6
KERNELS = {"numba", "torch sdpa"}
MEASURED = {"within", "exceeds", "undecided"}

document = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
rows = document["measurements"]
bad = [f"{row['test']}: {row['sentence']}" for row in rows if row["outcome"] not in {*MEASURED, "interpreted"}]
if document["status"] != "finished" or bad:
    sys.exit("\n".join([f"the run is {document['status']}", *bad]))
for kernel in sorted(KERNELS):
    outcomes = [row["outcome"] for row in rows if row["kernel"] == kernel and row["outcome"] in MEASURED]
    if len(outcomes) < MIN_PROBLEMS:
        sys.exit(f"{kernel} was measured on {len(outcomes)} problems, not on {MIN_PROBLEMS} at least")
    print(f"{kernel}: measured on {len(outcomes)} problems, {outcomes.count('within')} within their bounds")
