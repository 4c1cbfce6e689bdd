"""Settings, the locations of files, and the display of text. This package imports nothing else of
gradpath.
"""
