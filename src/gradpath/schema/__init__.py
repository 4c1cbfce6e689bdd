"""What a user can set, where files are, and how text is shown: knows nothing of the rest of
gradpath.
"""
