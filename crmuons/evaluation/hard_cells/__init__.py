"""Hard cells: kinds of rare events, judged with the events of the whole truth.

`kinds` defines the cells, `importance` the probability with which an event is looked at, and `figures` the weighted
figures. `judge` passes over true and generated events.
"""
