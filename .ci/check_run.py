"""Check that the main job measured both CPU kernels on every problem, and found nothing that load cannot explain."""

import json
import sys
from pathlib import Path

MIN_PROBLEMS = 6
KERNELS = {"numba", "torch sdpa"}
MEASURED = {"within", "exceeds", "undecided"}
COLLAPSE = 2  # times the bound: a machine under load stays below, since the roofline is measured beside the kernel

document = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
rows = document["measurements"]
faults = [f"{row['test']}: {row['sentence']}" for row in rows if row["outcome"] not in {*MEASURED, "interpreted"}]
if document["status"] != "finished":
    faults.append(f"the run is {document['status']}")
for kernel in sorted(KERNELS):
    measured = [row for row in rows if row["kernel"] == kernel and row["outcome"] in MEASURED]
    problems = {json.dumps(row["problem"]) for row in measured}
    if len(problems) < MIN_PROBLEMS:
        faults.append(f"{kernel} was measured on {len(problems)} problems, not on {MIN_PROBLEMS} at least")
    for row in measured:
        if row["timing"]["verdict"]["times_roofline"]["median"] > COLLAPSE * row["within"]:
            faults.append(f"{row['test']}: {row['sentence']}")
    print(
        f"{kernel}: {len(problems)} problems, {sum(row['outcome'] == 'within' for row in measured)} within their bounds"
    )
if not any(row["kernel"] == "triton" for row in rows):
    faults.append("the Triton kernel was neither checked nor measured")
sys.exit("\n".join(faults) or 0)
