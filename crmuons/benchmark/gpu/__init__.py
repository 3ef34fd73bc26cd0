"""Check a GPU in eight minutes: `crmuons benchmark gpu`. It needs torch, numpy, pyarrow and pydantic, and no Ray.

`run` starts each part in its own process with a time limit; `report` shows the results. The parts are the other
modules. A part returns figures by name, nested as the report shows them.
"""
