"""An app in a file of its own, for `oncue run greetings:app` and for programs that import it."""

from oncue import App

app = App("sqlite:///jobs.db")


@app.actor(timeout=30)
async def greet(name: str) -> str:
    return f"Hello, {name}!"
