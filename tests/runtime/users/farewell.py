import atexit
import os

atexit.register(lambda: open(os.environ["FAREWELL"], "w").close())


def work(payload):
    return payload
