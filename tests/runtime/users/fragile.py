"""Can be loaded once; afterwards only when the file is there again."""

import os

if os.path.exists(os.environ["FRAGILE"]):
    raise OSError("the model is gone")


def work(payload):
    if payload == "break":
        open(os.environ["FRAGILE"], "w").close()
        os._exit(1)
    return payload
