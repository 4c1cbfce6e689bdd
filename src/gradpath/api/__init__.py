"""gradpath from Python: what ``import gradpath as gp`` offers, one module for each name."""
