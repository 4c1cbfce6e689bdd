"""The mathematics: cells' contract, forward and backward pass, gradients of every step, theory.
Needs NumPy only.
"""
