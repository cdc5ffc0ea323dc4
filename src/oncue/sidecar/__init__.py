"""What stands between a queue and one runtime: takes messages, has the runtime work on them, and moves the results on.

`actor` is one replica's pump, `workload` its link to the runtime, and the rest makes a process of it.
"""
