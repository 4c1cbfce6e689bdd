"""gradpath from Python: the names of ``import gradpath as gp``, one module for each."""
