"""OnCue runs queue-driven actors: write a function, and OnCue takes the messages and moves the results on."""

__version__ = "0.1.0"
