"""Arrays in, arrays out: attention and its masks, cross-entropy; no Flax here."""
