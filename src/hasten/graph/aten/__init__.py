"""What the ATen operators compute, written once over an array namespace `xp` that mirrors numpy.

Each function takes `xp` and the operator's arguments by the names of its schema, and ignores those that do not change
a result (memory formats, devices). `TABLE` holds all of them by the operator's name without overload.
"""

from hasten.graph.aten import elementwise, neural, quantized, shapes

TABLE = {**elementwise.TABLE, **shapes.TABLE, **neural.TABLE, **quantized.TABLE}
