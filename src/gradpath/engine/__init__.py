"""How a pass is computed: the compiled loop over time, memory, memory layout and partition. No
module of this package knows a cell.
"""
