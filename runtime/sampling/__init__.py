"""From noise to latents: the noise levels on the way, the steps between them, and the loop that takes them."""
