"""Hard cells: kinds of rare events, judged with as many events as the whole truth holds.

The parts: which cells there are (`kinds`), with what probability an event is looked at (`importance`), the weighted
figures (`figures`), and the passes over true and generated events (`judge`).
"""
