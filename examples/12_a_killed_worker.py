"""Worker processes share the work. One of them is killed in the middle, and nothing is lost.

Two processes run the app in sourcecode.py, which measures Python source files, here those of the `email` package. What the
killed one had in its hands comes back when its leases end, after 5 seconds.
"""

import email
import os
import subprocess
import time
from pathlib import Path

os.environ.update(ONCUE_URL="sqlite:///jobs.db", DEMO_REPORT="report.db", PYTHONPATH=str(Path(__file__).parent))

import sourcecode  # the app asks the environment where its queues and its report are

FOLDER = Path(email.__file__).parent
FILES = sorted(map(str, FOLDER.rglob("*.py")))


def start_worker():
    return subprocess.Popen(["oncue", "run", "sourcecode:app"], stderr=subprocess.DEVNULL)


def measured():
    with sourcecode.open_report() as report:
        return [path for (path,) in report.execute("SELECT path FROM files ORDER BY path")]


sourcecode.make_report()
with sourcecode.app.blocking() as jobs:
    jobs.send("list_files", str(FOLDER), route=["measure", "summarise"])

workers = [start_worker(), start_worker()]
try:
    while len(measured()) < 5:
        time.sleep(0.01)
    workers[0].kill()
    print("killed one of two workers, with", "some" if len(measured()) < len(FILES) else "none", "of the files to go")
    while len(measured()) < len(FILES):
        time.sleep(0.05)
finally:
    for worker in workers:
        worker.terminate()
        worker.wait()

print("every file is in the report:", measured() == FILES)
