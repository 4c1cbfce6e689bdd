"""The border of the compiled loop: whatever is handed to it, an error of one line that changes nothing, or the bits of
Python's loop; and which of the two loops runs, and why.
"""
