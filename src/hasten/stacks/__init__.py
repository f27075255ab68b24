"""What runs in an environment of its own: one file a stack, its pinned packages in the `.txt` beside it.

A stack's functions take paths and plain values and return plain values. `load(folder, **values)` returns a program.
Stacks import `hasten.errors`, `hasten.machine`, `hasten.pieces` and `hasten.graph` (the plan and its interpreter) and
the packages of their list.
"""
