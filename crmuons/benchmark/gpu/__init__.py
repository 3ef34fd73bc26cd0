"""Check a GPU in eight minutes: `crmuons benchmark gpu`. It needs torch, numpy, pyarrow and pydantic, and no Ray.

`run` starts the parts, each in a process of its own with a time limit; `report` shows what they return. The parts are the other
modules; a part returns figures by name, nested as a report shows them.
"""
