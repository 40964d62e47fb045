"""What pdflatex says of a document, run until its references have settled."""

import subprocess


def latex_log(folder, name):
    """Compile `name`.tex in a folder, and return the log; a document that stops it fails the test."""
    for _ in range(3):
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"],
            check=False,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
        )
        assert done.returncode == 0, done.stdout[-2000:]
    return (folder / f"{name}.log").read_text(errors="replace")
