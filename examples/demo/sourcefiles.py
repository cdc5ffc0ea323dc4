"""Handlers of the actors in actors.yaml: plain Python, 3.7 or newer, which knows nothing of queues.

find       a folder in, the paths of its source files out, one message each
measure    a path in, what is in the file out; a file that does not parse raises
summarise  a measurement in, a row of the report out
"""

import ast
from collections import Counter
from pathlib import Path

NOT_THE_LIBRARY = {"site-packages", "dist-packages"}
"""Folders inside of the standard library that belong to other packages."""

BRANCHES = tuple(
    getattr(ast, name)
    for name in ("If", "For", "AsyncFor", "While", "ExceptHandler", "IfExp", "Assert", "match_case")
    if hasattr(ast, name)
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def find(folder):
    """Each path that is yielded is a message of its own."""
    for path in sorted(Path(folder).rglob("*.py")):
        if path.is_file() and not NOT_THE_LIBRARY & set(path.parts):
            yield str(path)


def measure(path):
    """What comes out goes to the next actor of the route, which the message says."""
    source = Path(path).read_bytes()
    functions, imports = survey(ast.parse(source, filename=path))
    lines = source.count(b"\n") + (not source.endswith(b"\n") and source != b"")
    return {"path": path, "lines": lines, "functions": functions, "imports": sorted(imports)}


class Summary:
    """Made once in each process, before it takes a message: the place for what takes long to load."""

    def __init__(self, simple=10):
        self.simple = simple

    def of(self, measurement):
        ways = measurement.pop("functions")
        hardest = max(ways, key=ways.get, default="")
        return {
            **measurement,
            "functions": len(ways),
            "complexity": sum(ways.values()),
            "hardest": hardest.rpartition(":")[0],
            "ways": ways.get(hardest, 0),
            "involved": sum(count > self.simple for count in ways.values()),
        }


def survey(tree):
    """The cyclomatic complexity of each function, 1 and one more for each branch in it, and the modules imported."""
    functions = Counter()
    imports = set()
    to_visit = [(tree, "", "")]  # a node, what it is part of, and in which function
    while to_visit:
        node, name, function = to_visit.pop()
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            name = f"{name}.{node.name}".lstrip(".")
        if isinstance(node, FUNCTIONS):
            function = f"{name}:{node.lineno}"
            functions[function] = 1
        elif function:
            functions[function] += branches(node)
        if isinstance(node, ast.Import):
            imports.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports.add(node.module.partition(".")[0])
        to_visit += [(child, name, function) for child in ast.iter_child_nodes(node)]
    return functions, imports


def branches(node):
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return int(isinstance(node, BRANCHES))
