"""What states say: what recurrent heads hold, write, read and erase, and what the model does without it."""
