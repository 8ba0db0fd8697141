"""Records to batches: sources, packing, the input pipeline, and the teacher store on disk."""
