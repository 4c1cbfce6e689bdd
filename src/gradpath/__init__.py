"""gradpath: the gradient norm of every parameter at every timestep of a recurrent network."""
