"""How good pictures are: measures, a judge network, and the report that `imagen evaluate` writes.

Nothing else in the library imports this.
"""
