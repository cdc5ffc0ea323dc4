"""Without asyncio, and with a worker in a process of its own.

A web application or a script that knows nothing of asyncio has the same verbs, blocking. The worker is what you would start in
a second terminal: `oncue run greetings:app`.
"""

import os
import subprocess
from pathlib import Path

from greetings import app

# `oncue run` finds greetings.py in the folder it is started in; named here so that this program runs from anywhere.
environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}

with subprocess.Popen(["oncue", "run", "greetings:app"], env=environment, stderr=subprocess.DEVNULL) as worker:
    try:
        with app.blocking() as jobs:
            print(jobs.call("greet", "Ada", timeout=20))
            jobs.send("greet", "Grace")
            ids = jobs.send_many("greet", ["Edsger", "Barbara", "Tony"])
            print(f"sent {len(ids)} at once")
            print(jobs.call("greet", "Donald", timeout=20))
    finally:
        worker.terminate()  # SIGTERM: it finishes what it has begun

print("the worker ended with exit code", worker.returncode)
