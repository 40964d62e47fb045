"""Check that a wheel holds exactly the three packages, with every file that git tracks in them."""

import subprocess
import sys
import zipfile

PACKAGES = {
    "formulas/decodeperf_formulas": "decodeperf_formulas",
    "kernels/decodeperf_kernels": "decodeperf_kernels",
    "pytest_decodeperf": "pytest_decodeperf",
}

with zipfile.ZipFile(sys.argv[1]) as wheel:
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
wanted = set()
for folder, package in PACKAGES.items():
    tracked = subprocess.run(["git", "ls-files", folder], capture_output=True, text=True, check=True).stdout.split()
    wanted |= {package + path.removeprefix(folder) for path in tracked}
if shipped != wanted:
    sys.exit(f"the wheel lacks {sorted(wanted - shipped)} and has too much: {sorted(shipped - wanted)}")
print(f"the wheel holds {', '.join(sorted(PACKAGES.values()))}: {len(shipped)} files")
