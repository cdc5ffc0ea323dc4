"""What transports share whose service is polled: asked for messages by requests, it hides for a time what it hands out.

`source` is what a service has to say of itself, and how it is asked. `subscription` asks for messages and hands them out, `lease` is
one that was handed out, `lines` gathers entries into calls that take many, and sends. `look` shows or drops what is ready, `places`
remembers where queues are, and `tasks` owns what is under way.
"""
