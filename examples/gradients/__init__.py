"""Why long sequences are hard to learn, and what helps: gradients that vanish or explode, as a picture."""
