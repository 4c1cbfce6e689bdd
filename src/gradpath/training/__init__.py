"""An experiment, its seeds and its loop: sample, forward, backward, clip, update, measure."""
