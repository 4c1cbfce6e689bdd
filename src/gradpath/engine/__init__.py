"""How a pass is computed: the compiled loop over time, memory, layout in memory and partition.
Knows no cell.
"""
