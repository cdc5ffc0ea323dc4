"""AsyncActor manifests as processes on this machine: what `oncue up` runs.

From the outside in: `supervisor` runs a `group` for each actor, which has as many `replica`s as `scaling` wants; each of them
is a runtime in a process of its own (`processes`, `launch`) and a pump in front of it. `plan` turns manifests into what is to
be started, `watch` notices what was edited, `state` is how other processes find what runs here.
"""
